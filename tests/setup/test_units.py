"""The tracked unit files: sound for systemd, bounded, hardened, and accepted by the real llama-server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import ROOT, Stack, wait_for
from systemd_llm_switch.http_server.server import SHUTDOWN_TIMEOUT_S
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import Machine, UnitSource, exec_start, expand, quote, without
from systemd_llm_switch.setup.user_manager import UserManager

SOURCES = {source.name: source for source in UnitSource.read_all(ROOT / "deploy/systemd")}
DEMO = {source.name: source for source in UnitSource.read_all(ROOT / "deploy/demo")}
BIG = ("qwen3-coder-flash", "qwen3-coder-next", "qwen3-thinking", "qwen3-thinking-next")
SMALL = "qwen3-4b"
ALL_MODELS = [f"{name}.service" for name in (SMALL, *BIG, "bge-m3")]


def options(name: str) -> dict[str, str]:
    """A unit's long options and their values."""
    words = exec_start(SOURCES[name].text)
    named = [(word, words[index + 1 : index + 2]) for index, word in enumerate(words) if word.startswith("--")]
    return {word: (value[0] if value and not value[0].startswith("--") else "") for word, value in named}


def settings(name: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", SOURCES[name].text, re.MULTILINE)


def test_the_missions_units_are_all_there() -> None:
    assert set(SOURCES) == {"llm-switch.service", "llm.slice", *ALL_MODELS}


def test_tracked_files_verify_clean(manager: UserManager, tmp_path: Path, llama_server: Path) -> None:
    """In a home where llama.cpp and the repository stand where the files say."""
    for place in ("llama.cpp/build/bin/llama-server", "systemd-llm-switch/.venv/bin/python"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).symlink_to(llama_server)
    files = [str(source.path) for source in (*SOURCES.values(), *DEMO.values())]
    env = manager.env | {"HOME": str(tmp_path)}
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--user", *files], env=env, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", BIG)
def test_the_large_models_have_the_missions_flags(name: str) -> None:
    got = options(f"{name}.service")
    assert got["--host"] == "127.0.0.1"
    assert got["--port"] == "3004"
    assert got["--n-gpu-layers"] == "49"
    assert got["--ctx-size"] == ("65536" if name.endswith("next") else "32768")
    assert got["--flash-attn"] == "on"
    assert "--jinja" in got


def test_the_small_model_is_on_the_card_with_all_its_layers() -> None:
    got = options(f"{SMALL}.service")
    assert got["--n-gpu-layers"] == "99"
    assert "--override-tensor" not in got


def test_each_model_says_how_large_its_download_is() -> None:
    wanted = {name: SOURCES[name].wanted_model for name in ALL_MODELS}
    assert [name for name, model in wanted.items() if model is None or not model.size] == []


@pytest.mark.parametrize(
    ("ram_gib", "limit"), [(3, None), (5, 3), (16, 14), (48, 42), (64, 56), (128, 120), (None, None)]
)
def test_the_models_get_the_ram_less_a_share_for_the_rest(ram_gib: int | None, limit: int | None) -> None:
    ram = None if ram_gib is None else ram_gib << 30
    machine = Machine(
        Path("/home/me"), Path("/p/python"), Path("/usr/bin/llama-server"), Path("/models"), ram_bytes=ram
    )
    text = SOURCES["llm.slice"].render(machine, None)
    assert f"\nMemoryHigh={limit}G\n" in text if limit else "\nMemoryHigh=infinity\n" in text


@pytest.mark.parametrize("name", ALL_MODELS)
def test_a_model_has_its_name_and_its_figures(name: str) -> None:
    got = options(name)
    assert got["--alias"] == name.removesuffix(".service")
    assert "--metrics" in got


@pytest.mark.parametrize("name", BIG)
def test_the_ram_for_earlier_prompts_is_bounded(name: str) -> None:
    """By default it would be 8 GiB, beside a model of 36 GB."""
    assert 0 < int(options(f"{name}.service")["--cache-ram"]) <= 4096


@pytest.mark.parametrize("name", BIG)
def test_the_experts_of_most_layers_stay_in_ram(name: str) -> None:
    pattern, _, buffer = options(f"{name}.service")["--override-tensor"].partition("=")
    in_ram = [layer for layer in range(48) if re.search(pattern, f"blk.{layer}.ffn_gate_exps.weight")]
    assert buffer == "CPU"
    assert in_ram == list(range(2 if name.endswith("next") else 1, 48))
    for tensor in ("blk.7.ffn_up_exps.weight", "blk.7.ffn_down_exps.weight"):
        assert re.search(pattern, tensor)
    for tensor in (
        "blk.7.attn_q.weight",
        "blk.7.ffn_gate_shexp.weight",
        "blk.7.ffn_gate_inp.weight",
        "output.weight",
    ):
        assert not re.search(pattern, tensor)


def test_the_embedding_model_takes_long_inputs() -> None:
    got = options("bge-m3.service")
    assert "--embedding" in got
    assert got["--pooling"] == "cls"
    assert got["--ctx-size"] == got["--batch-size"] == got["--ubatch-size"] == "8192"


@pytest.fixture
def units(stack: Stack, llama_server: Path, model_file: Path) -> Iterator[dict[str, str]]:
    """The real unit files, rendered for the small model and a free port, under this test's own names."""
    left_out = Systemctl(stack.env).unusable_settings()
    machine = Machine(Path(stack.env["HOME"]), llama_server, llama_server, model_file.parent, left_out)
    folder = Path(stack.env["HOME"]) / ".config/systemd/user"
    names = {}
    for name in ALL_MODELS:
        text = SOURCES[name].render(machine, model_file)
        text = text.replace("--port 3004", f"--port {stack.port} --threads 1")
        names[name] = f"{stack.prefix}-{name}"
        stack.units.append(names[name])
        (folder / names[name]).write_text(text)
    (folder / "llm.slice").write_text(SOURCES["llm.slice"].text)
    stack.systemctl("daemon-reload")
    yield names
    (folder / "llm.slice").unlink()


def _is_listening(port: int) -> bool:
    asked = subprocess.run(
        ["curl", "--silent", "--fail", f"http://127.0.0.1:{port}/health"], capture_output=True, check=False
    )
    return asked.returncode == 0


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_real_llama_server_accepts_the_unit_as_it_is(stack: Stack, units: dict[str, str], name: str) -> None:
    """Hardening, quoting and every flag included; the regex arrives as the file has it."""
    stack.systemctl("start", units[name])
    wait_for(lambda: _is_listening(stack.port), what=name)
    pid = stack.main_pid(units[name])
    given = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    expected = options(name).get("--override-tensor")
    assert expected is None or given[given.index("--override-tensor") + 1] == expected
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    stack.systemctl("stop", units[name])


def test_stopping_the_slice_frees_everything_at_once(stack: Stack, units: dict[str, str]) -> None:
    name = units["bge-m3.service"]
    stack.systemctl("start", name)
    stack.systemctl("stop", "llm.slice")
    assert stack.active_state(name) == "inactive"
    assert stack.systemctl("show", "-p", "Result", "--value", name).strip() == "success"  # and not "timeout"


def test_a_hardened_unit_cannot_write_where_it_should_not(stack: Stack, units: dict[str, str]) -> None:
    name = units["qwen3-coder-flash.service"]
    stack.systemctl("start", name)
    target = Path(stack.env["HOME"]) / "written"
    enter = ["nsenter", "--target", str(stack.main_pid(name)), "--mount", "--user", "--preserve-credentials"]
    ran = subprocess.run([*enter, "touch", str(target)], capture_output=True, text=True, check=False)
    assert "Read-only file system" in ran.stderr
    stack.systemctl("stop", name)


@pytest.mark.parametrize("name", [*ALL_MODELS, "llm-switch.service"])
def test_a_start_loop_ends(stack: Stack, name: str) -> None:
    """By systemd's own start limit: the interval and the burst of the file, on a program that does not exist."""
    text = re.sub(r"^ExecStart=(?:.*\\\n)*.*$", "ExecStart=/nonexistent", SOURCES[name].text, flags=re.MULTILINE)
    text = re.sub(r"^RestartSec=.*$", "RestartSec=10ms", text, flags=re.MULTILINE)
    unit = f"{stack.prefix}-{name}"
    (Path(stack.env["HOME"]) / ".config/systemd/user" / unit).write_text(text)
    stack.units.append(unit)
    stack.systemctl("daemon-reload")
    for _ in range(6):
        stack.systemctl("start", unit, check=False)

    def result() -> str:
        return stack.systemctl("show", "-p", "Result", "--value", unit).strip()

    wait_for(lambda: "start-limit-hit" in stack.systemctl("status", unit, check=False) or result())
    wait_for(lambda: stack.active_state(unit) == "failed")
    began = stack.systemctl("show", "-p", "InvocationID", "--value", unit)
    stack.systemctl("start", unit, check=False)
    assert stack.systemctl("show", "-p", "InvocationID", "--value", unit) == began  # not even tried
    stack.systemctl("reset-failed", unit)
    stack.systemctl("start", unit, check=False)
    assert stack.systemctl("show", "-p", "InvocationID", "--value", unit) != began


def test_restarts_reach_the_start_limit() -> None:
    """Burst restarts, RestartSec apart, fit into the interval; or the limit would never be met."""
    (pause,), (burst,), (interval,) = (
        settings("llm-switch.service", key) for key in ("RestartSec", "StartLimitBurst", "StartLimitIntervalSec")
    )
    assert int(pause) * int(burst) < int(interval) / 2


@pytest.mark.parametrize("name", ALL_MODELS)
def test_models_are_started_by_nobody_but_the_proxy(name: str) -> None:
    assert settings(name, "Restart") == ["no"]
    assert settings(name, "Slice") == ["llm.slice"]
    assert settings(name, "Type") == ["exec"]
    assert settings(name, "WantedBy") == []
    assert int(settings(name, "TimeoutStopSec")[0]) <= 10


def test_the_proxy_is_no_part_of_the_slice_and_outlives_its_drain_bound() -> None:
    name = "llm-switch.service"
    assert settings(name, "Slice") == []
    assert settings(name, "Type") == ["notify"]
    assert settings(name, "WantedBy") == ["default.target"]
    assert int(settings(name, "TimeoutStopSec")[0]) > SHUTDOWN_TIMEOUT_S + 5  # and everything else ends
    assert settings(name, "WatchdogSec") == ["30"]


@pytest.mark.parametrize(("name", "limit"), [("llm-switch.service", 2.5), *((name, 3.0) for name in ALL_MODELS)])
def test_exposure_is_low(manager: UserManager, name: str, limit: float) -> None:
    """systemd-analyze's figure, from 0 (closed) to 10."""
    command = ["systemd-analyze", "security", "--user", "--offline=true", "--no-pager", str(SOURCES[name].path)]
    report = subprocess.run(command, env=manager.env, capture_output=True, text=True, check=False).stdout
    figure = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert figure
    assert float(figure[1]) <= limit


def test_the_documented_unit_for_a_model_of_ones_own_serves(stack: Stack, llama_server: Path, model_file: Path) -> None:
    """As the page has it, with this machine's paths, through the proxy."""
    text = (ROOT / "docs/configuration.md").read_text().partition("```ini\n")[2].partition("```")[0]
    for there, here in (
        ("%h/llama.cpp/build/bin/llama-server", llama_server), ("%h/models/my-model.gguf", model_file),
        ("--port 3004", f"--port {stack.port} --threads 1"),
    ):  # fmt: skip
        assert there in text
        text = text.replace(there, str(here))
    unit = stack.unit("own", "/bin/false")
    (Path(stack.env["HOME"]) / ".config/systemd/user" / unit).write_text(text)
    stack.systemctl("daemon-reload")
    proxy = stack.run({"my-model": unit})
    assert proxy.chat("my-model").text.strip()
    assert stack.systemctl("show", "-p", "Slice", "--value", unit).strip() == "llm.slice"


def test_settings_left_out_stay_readable() -> None:
    text = without(SOURCES["llm-switch.service"].text, ("PrivateTmp=yes", "ProtectHome=read-only"))
    assert "\n# not on this machine: PrivateTmp=yes\n" in text
    assert "\nPrivateTmp" not in text
    assert "\nProtectSystem=strict\n" in text


@pytest.mark.parametrize("folder", ["/tmp/x", "/var/tmp/x"])
def test_private_tmp_never_hides_what_a_unit_runs(folder: str) -> None:
    machine = Machine(Path("/home/me"), Path(folder) / "python", Path("/usr/bin/llama-server"), Path("/models"))
    assert "\n# not on this machine: PrivateTmp=yes" in SOURCES["llm-switch.service"].render(machine, None)
    sound = Machine(Path("/home/me"), Path("/repo/python"), Path("/usr/bin/llama-server"), Path("/models"))
    assert "\nPrivateTmp=yes" in SOURCES["llm-switch.service"].render(sound, None)


@pytest.mark.parametrize("word", ["plain", "a b", "50% $HOME ${HOME} %h", 'say "x"', "it's", "a\\b \\n", "ü"])
def test_a_quoted_word_reaches_the_program_as_it_was(stack: Stack, word: str) -> None:
    target = stack.folder / "out"
    script = f"printf %%s \"$$1\" > '{target}'"
    unit = stack.unit("echo", f"/bin/sh -c {script!r} sh {quote(word)}".replace("\\'", "'"))
    stack.systemctl("start", unit)
    assert wait_for(lambda: target.exists() and target.read_text()) == word


@pytest.mark.parametrize(("path", "reason"), [("/a/\x7fb", "control character"), ("/a/\udcffb", "is not valid UTF-8")])
def test_a_path_that_cannot_go_into_a_unit_is_named(path: str, reason: str) -> None:
    with pytest.raises(SetupError, match=reason):
        quote(path)


@pytest.mark.parametrize(
    ("word", "path"), [("%h/a", "/home/me/a"), ("%%h/a", "%h/a"), ("/a%%%h", "/a%/home/me"), ("100%%", "100%")]
)
def test_specifiers_are_read_as_systemd_reads_them(word: str, path: str) -> None:
    assert expand(word, Path("/home/me")) == path


@pytest.mark.parametrize(
    ("environ", "line"),
    [({}, "export XDG_RUNTIME_DIR=/run/user/7"), ({"XDG_RUNTIME_DIR": "/run/user/7"}, "")],
)
def test_after_su_the_line_that_makes_systemctl_work_is_known(environ: dict[str, str], line: str) -> None:
    assert Systemctl({"XDG_RUNTIME_DIR": "/run/user/7"}).how_to_reach(environ) == line
