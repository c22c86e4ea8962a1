"""The check names flags that the llama-server at hand does not know."""

from __future__ import annotations

from pathlib import Path

from support.stack import Stack
from systemd_llm_switch.setup.check import findings
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.running_proxy import ProxyConfig
from systemd_llm_switch.setup.systemctl import Systemctl

NEW_HELP = """\
-m,    --model FNAME                    model path
-c,    --ctx-size N                     size of the prompt context
--port PORT                             port to listen on
-lm,   --load-mode MODE                 how to load
"""


def found(stack: Stack, command: str) -> list[tuple[str, str]]:
    unit = stack.unit("m", command)
    config = ProxyConfig(stack.config_path, (), "http://127.0.0.1:1", {"m": unit})
    known = findings(config, Systemctl(stack.env), Places.of(stack.env))
    return [(it.what.replace(unit, "UNIT"), it.fix.replace(unit, "UNIT")) for it in known if "does not know" in it.what]


def test_an_unknown_flag_is_named_with_the_one_to_use_instead(stack: Stack) -> None:
    server = stack.folder / "llama-server"
    server.write_text(f"#!/bin/sh\ncat <<'END'\n{NEW_HELP}END\n")
    server.chmod(0o755)
    assert found(stack, f"{server} --model /m.gguf --ctx-size 512 --no-mmap --mlock") == [
        (
            f"m: UNIT has {flag}, which this llama-server does not know",
            f"write {instead} instead: systemctl --user edit --full UNIT",
        )
        for flag, instead in (("--no-mmap", "--load-mode none"), ("--mlock", "--load-mode mlock"))
    ]


def test_flags_that_the_real_llama_server_knows_are_no_finding(stack: Stack, llama_server: Path) -> None:
    assert found(stack, f"{llama_server} -m /m.gguf --ctx-size 512 --no-mmap --mlock --cache-ram -1") == []


def test_a_build_that_lists_no_flags_is_no_finding(stack: Stack) -> None:
    server = stack.folder / "llama-server"
    server.write_text("#!/bin/sh\nexit 1\n")
    server.chmod(0o755)
    assert found(stack, f"{server} --model /m.gguf --no-mmap") == []
