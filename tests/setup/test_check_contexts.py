"""The check says which units keep no contexts, and what to add."""

from __future__ import annotations

import pytest

from support.stack import Stack
from systemd_llm_switch.setup.check import advice
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.running_proxy import ProxyConfig
from systemd_llm_switch.setup.systemctl import Systemctl

SERVER = "/opt/llama-server --model /m.gguf"


def said(stack: Stack, command: str, keep: tuple[str, ...] = ("m",), service: str = "") -> list[tuple[str, str]]:
    unit = stack.unit("m", command, service=service)
    config = ProxyConfig(stack.config_path, (), "http://127.0.0.1:1", {"m": unit}, keep=keep)
    found = advice(config, Systemctl(stack.env), Places.of(stack.env))
    return [(it.what, it.fix.replace(unit, "UNIT")) for it in found]


def test_a_unit_without_the_flag_is_named(stack: Stack) -> None:
    [(what, fix)] = said(stack, SERVER)
    assert what.startswith("m: its conversations are read again after each switch: add `--slot-save-path DIR`")
    assert fix == "systemctl --user edit --full UNIT"


@pytest.mark.parametrize("place", ["/var/lib/slots", "%C/systemd-llm-switch/contexts/", "%h/slots"])
def test_a_unit_with_the_flag_needs_nothing(stack: Stack, place: str) -> None:
    assert said(stack, f"{SERVER} --slot-save-path {place}") == []


def test_a_unit_with_the_variable_needs_nothing(stack: Stack) -> None:
    assert said(stack, SERVER, service="Environment=LLAMA_ARG_SLOT_SAVE_PATH=/var/lib/slots") == []


def test_a_model_whose_contexts_nobody_wants_needs_nothing(stack: Stack) -> None:
    assert said(stack, SERVER, keep=()) == []


def test_a_model_for_embeddings_needs_nothing(stack: Stack) -> None:
    assert said(stack, f"{SERVER} --embedding") == []


def test_another_program_needs_nothing(stack: Stack) -> None:
    assert said(stack, "/opt/other-server --model /m.gguf") == []
