"""A unit whose llama-server would listen elsewhere than the proxy asks is refused at once, if that is certain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.ports import free_port
from support.stack import Stack
from systemd_llm_switch.switching.address import elsewhere
from systemd_llm_switch.systemd.manager import Systemd


def test_the_error_names_both_ports_the_unit_and_the_key(stack: Stack, real_unit: Callable[..., str]) -> None:
    """Nothing is stopped for it. With another `llama_url` it is loaded."""
    unit, port = real_unit("astray"), free_port()
    sound = stack.standin("sound", port=port)
    proxy = stack.run({"m": unit, "sound": sound}, llama_url=f"http://127.0.0.1:{port}")
    assert proxy.chat("sound").status == 200
    answer = proxy.chat("m")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    for words in (unit, f"`--port {stack.port}`", f"`llama_url` in the config is http://127.0.0.1:{port}"):
        assert words in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert stack.active_state(sound) == "active"
    stack.write_config({"m": unit, "sound": {"unit": sound, "llama_url": f"http://127.0.0.1:{port}"}})
    assert proxy.chat("m").status == 200


def found(stack: Stack, command: str, url: str = "http://127.0.0.1:3004", service: str = "") -> list[str]:
    """The flag, what it says and what is asked; empty without a finding."""
    unit = stack.unit("m", command, service=service)
    return list(elsewhere(Systemd(environ=stack.env).show([unit])[unit], url) or ())


@pytest.mark.parametrize("written", ["--port 3999", "--port=3999", "--port 3004 --port 3999"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:3004", "http://localhost:3004"])
def test_another_port_is_found(module_stack: Stack, llama_server: Path, written: str, url: str) -> None:
    assert found(module_stack, f"{llama_server} {written}", url) == ["--port", "3999", "3004"]


def test_another_host_is_found(module_stack: Stack, llama_server: Path) -> None:
    words = f"{llama_server} --port 3004 --host"
    assert found(module_stack, f"{words} 127.0.0.2") == ["--host", "127.0.0.2", "127.0.0.1"]
    for host in ("127.0.0.1", "0.0.0.0", "::", "localhost"):
        assert found(module_stack, f"{words} {host}") == []


@pytest.mark.parametrize(
    ("words", "service", "url"),
    [
        ("--port 3004", "", "http://127.0.0.1:3004"),
        ("--port 3004", "", "http://localhost:3004"),
        ("", "", "http://127.0.0.1:3004"),
        ("--port 3999", "", "http://192.0.2.7:3004"),
        ("--port 3999", "", "http://box:3004"),
        ("--port 3999", "Environment=LLAMA_ARG_PORT=3004", "http://127.0.0.1:3004"),
        ("--port ${PORT}", "Environment=PORT=3004", "http://127.0.0.1:3004"),
        ("--port 3999 $MORE", "Environment=MORE=--port\\x203004", "http://127.0.0.1:3004"),
        ("--port 3999", "ExecStartPost=/bin/true", "http://127.0.0.1:3004"),
        ("--port 3999", "PrivateNetwork=yes", "http://127.0.0.1:3004"),
        ("--port 3999", "[Unit]\nWants=relay.service", "http://127.0.0.1:3004"),
        ("--port 3999", "[Unit]\nRequires=relay.socket", "http://127.0.0.1:3004"),
    ],
)
def test_what_fits_or_is_not_certain_is_not_found(
    module_stack: Stack, llama_server: Path, words: str, service: str, url: str
) -> None:
    assert found(module_stack, f"{llama_server} {words}", url, service) == []


def test_another_program_or_a_script_is_not_believed(module_stack: Stack) -> None:
    script = module_stack.folder / "llama-server"
    script.write_text("#!/bin/sh\n")
    for program in (script, Path("/bin/true"), Path("/nonexistent/llama-server")):
        assert found(module_stack, f"{program} --port 3999") == []
