"""A config that is not what it should be: refused with a clear message, quickly, and without blocking anybody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.stack import ROOT, wait_for
from systemd_llm_switch.config.file import PACKAGED, LiveConfig, load, places, warnings
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError
from systemd_llm_switch.errors import ModelNotFound
from systemd_llm_switch.setup.user_manager import UserManager
from systemd_llm_switch.systemd.bus import BusCall, CallRefused, ManagerBus


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(text: str, folder: Path) -> str:
    """The message with which a file of this text is refused."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder / "config.yaml", text))
    return str(caught.value)


def problems(raw: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    return {problem.path: problem.message for problem in caught.value.problems}


def cpu_s(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


# --- what is not a file with a config ---------------------------------------------------------------


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load(tmp_path / "config.yaml")


def test_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        load(Path("/dev/zero"))


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    assert "is larger than 1000000 bytes" in refused("#" * 1_000_001, tmp_path)


def test_a_fifo_as_key_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys")
    message = refused("server: {api_keys_file: keys}\nmodels: {a: a.service}", tmp_path)
    assert message.startswith("server.api_keys_file: ")
    assert "is not a regular file" in message


def test_a_key_file_in_the_home_of_nobody_is_refused(tmp_path: Path) -> None:
    message = refused("server: {api_keys_file: ~nobody-of-that-name/keys}\nmodels: {a: a.service}", tmp_path)
    assert message.startswith("server.api_keys_file: cannot read ")
    assert "~nobody-of-that-name/keys: No such file" in message


@pytest.mark.parametrize(("path", "words"), [("a\0b", "not a valid path"), ("a\ud800b", "not a valid path")])
def test_a_path_that_cannot_be_is_refused(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(Path(path))


def test_a_path_that_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.yaml"
    Path(os.fsdecode(path)).write_text("models: {a: a.service}")
    ran = subprocess.run(
        [sys.executable, "-m", "systemd_llm_switch", "--check", "--config", path],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path}/\\xff.yaml: ok; models: a\n")


@pytest.mark.parametrize("escape", [r"\x7f", r"\x00", r"\x1b", r"\n", r"\u2028"])
@pytest.mark.parametrize(
    "line", ['server: {{api_keys_file: "a{}b"}}', 'models: {{"a{}b": b.service}}', 'models: {{a: "a{}b.service"}}']
)
def test_a_control_character_is_named(tmp_path: Path, line: str, escape: str) -> None:
    message = refused(line.format(escape), tmp_path)
    assert "must not hold the control character" in message
    assert escape in message


# --- too much ---------------------------------------------------------------------------------------


def test_more_than_a_thousand_models_are_refused() -> None:
    assert "at most 1000" in problems({"models": {f"m{i}": f"m{i}.service" for i in range(1001)}})["models"]
    assert len(parse({"models": {f"m{i}": f"m{i}.service" for i in range(1000)}}).models) == 1000


@pytest.mark.parametrize("vram", [0.1, 8, None])
@pytest.mark.parametrize("port", ["{0}", "1"])
def test_checking_models_takes_linear_time(vram: float | None, port: str) -> None:
    """Four times as many models may take about four times as long, not sixteen."""

    def raw(count: int) -> dict[str, Any]:
        size = {} if vram is None else {"vram": vram}
        models = {
            f"m{i}": {"unit": f"m{i}.service", "llama_url": f"http://h:{port.format(1 + i)}", **size}
            for i in range(count)
        }
        return {"server": {"vram": 9}, "models": models}

    def attempt(count: int) -> None:
        try:
            parse(raw(count))
        except ConfigError as error:
            assert len(error.problems) <= 51  # noqa: PT017

    few, many = (min(cpu_s(lambda n=n: attempt(n)) for _ in range(5)) for n in (250, 1000))  # type: ignore[misc]
    assert many < 10 * max(few, 0.001)


def test_the_problems_of_one_message_are_bounded() -> None:
    found = problems({"server": {f"k{i}" * 50: 1 for i in range(50_000)}, "models": {"a": "a.service"}})
    assert len(found) == 51
    assert found[""] == "there may be more; correct these first"
    assert max(map(len, found)) < 250


BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
ABUSE = {
    "aliases": (BOMB + "models: {a: {unit: a.service, params: {x: *x8}}}", "more than 50000 values"),
    "merges": ("a: &a {x: 1}\n" + "b: {<<: [" + "*a, " * 100_000 + "*a]}", "more than 50000 values"),
    "depth": ("models: " + "[" * 400_000, "more than 50 levels deep"),
    "mappings": ("models: " + "{a: " * 200_000, "more than 50 levels deep"),
    "blocks": ("models:\n" + "".join(" " * i + "a:\n" for i in range(1, 400)), "more than 50 levels deep"),
    "values": ("models: [" + "1," * 200_000 + "]", "more than 50000 values"),
    "sexagesimal": ("models: 1" + ":59" * 300_000, "must be put in quotes"),
    "tagged": ('models: !!int "1' + ":59" * 300_000 + '"', "must be put in quotes"),
    "digits": ("models: " + "9" * 900_000, "must be put in quotes"),
}


@pytest.mark.parametrize("kind", ABUSE)
def test_abuse_of_yaml_is_refused_with_little_time_and_memory(tmp_path: Path, kind: str) -> None:
    """Nine levels of ten aliases took 9 s and a gigabyte."""
    text, words = ABUSE[kind]
    tracemalloc.start()
    try:
        assert words in refused(text, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_long_text_in_quotes_is_taken(tmp_path: Path) -> None:
    text = f'models: {{a: {{unit: a.service, params: {{grammar: "{"x" * 50_000}"}}}}}}'
    assert len(str(load(write(tmp_path / "config.yaml", text)).models["a"].params["grammar"])) == 50_000


def test_an_alias_may_be_used_many_times(tmp_path: Path) -> None:
    models = "\n".join(f"  m{i}: {{<<: *base, unit: m{i}.service}}" for i in range(500))
    text = f"models:\n  base: &base {{unit: base.service, ttl: 60, params: {{top_k: 1}}}}\n{models}"
    assert load(write(tmp_path / "config.yaml", text)).models["m499"].ttl == 60


# --- units ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("x@.service", "is a template; name an instance of it, for instance x@1.service"),
        ("@.service", "is not a valid name"),
        ("@x.service", "is not a valid name"),
        (".service", "is not a valid name"),
        ("x" * 248 + ".service", "is 256 characters long; systemd takes at most 255"),
        ("ä.service", "is not a valid name"),
        ("a%i.service", "is not a valid name"),
    ],
)
def test_a_name_that_systemd_refuses_is_refused(unit: str, words: str) -> None:
    assert words in problems({"models": {"a": unit}})["models.a.unit"]


@pytest.mark.parametrize(
    "unit", ["x" * 247 + ".service", "x@1.service", "x@a@b.service", "x@1.2.service", "-x.service"]
)
def test_a_name_that_systemd_takes_is_taken(unit: str) -> None:
    assert parse({"models": {"a": unit}}).models["a"].unit == unit


@pytest.mark.parametrize(
    "unit",
    ["x@.service", "@x.service", ".service", "x" * 248 + ".service", "x" * 247 + ".service", "x@1.service",
     "x@a@b.service", "x@1.2.service", "a%i.service", "a b.service", "a\\x2d.service", "a:b_c.service"],
)  # fmt: skip
def test_the_rule_is_systemds_own(manager: UserManager, unit: str) -> None:
    """The real manager takes what the config takes, and refuses what it refuses."""
    with ManagerBus(manager.env) as bus:
        try:
            bus.call(BusCall("LoadUnit", "s", (unit,)))
        except CallRefused:
            is_valid = False
        else:
            is_valid = True
    try:
        parse({"models": {"a": unit}})
    except ConfigError:
        assert not is_valid
    else:
        assert is_valid


# --- where a key belongs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path", "words"),
    [
        ({"server": {"ttl": 5}}, "server.ttl", "does not belong here, but to a model (`models.NAME`)"),
        ({"port": 5}, "port", "does not belong here, but to the section `server`"),
        ({"server": {"models": {}}}, "server.models", "does not belong here, but to the top level"),
        ({"server": {"rescue": True}}, "server.rescue", "does not belong here, but to the section `repair`"),
        ({"repair": {"vram": 1}}, "repair.vram", "to the section `server` or a model (`models.NAME`)"),
        ({"repair": {"zzz": 1}}, "repair.zzz", "unknown key; the keys here are rescue, thoughts"),
        ({"repair": {"rescu": 1}}, "repair.rescu", "unknown key; did you mean 'rescue'?"),
    ],
)
def test_the_right_place_of_a_misplaced_key_is_named(raw: dict[str, Any], path: str, words: str) -> None:
    assert words in problems({"models": {"a": "a.service"}, **raw})[path]


# --- names ------------------------------------------------------------------------------------------

NAMED = {"Qwen": {"unit": "q.service", "aliases": ["gpt-4o"]}, "org/name": "n.service", "BIG": "b.service"}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen", "Qwen"), ("qwen", "Qwen"), ("QWEN:latest", "Qwen"), ("openai/Qwen", "Qwen"),
        ("OpenAI/qwen:Latest", "Qwen"), ("openai/gpt-4o", "Qwen"), ("GPT-4O", "Qwen"), ("openai/org/name", "org/name"),
        ("ORG/NAME:latest", "org/name"),
    ],
)  # fmt: skip
def test_a_name_is_taken_in_the_forms_that_clients_send(name: str, model: str) -> None:
    assert parse({"models": NAMED}).find_model(name).id == model


@pytest.mark.parametrize(
    "name", ["", "openai/", ":latest", "Qwen:7b", "azure/Qwen", "openai/openai/Qwen", "Qwe", "x" * 100_000]
)
def test_another_name_is_not_taken(name: str) -> None:
    with pytest.raises(ModelNotFound):
        parse({"models": NAMED}).find_model(name)


@pytest.mark.parametrize("name", ["qwen", "Qwen:latest", "openai/Qwen"])
def test_strict_names_are_exact(name: str) -> None:
    config = parse({"server": {"strict_names": True}, "models": NAMED})
    assert config.find_model("Qwen").id == "Qwen"
    with pytest.raises(ModelNotFound):
        config.find_model(name)


def test_a_name_that_can_mean_two_models_is_not_taken() -> None:
    config = parse({"models": {"a": "a.service", "A": "b.service", "openai/x": "c.service", "x:latest": "d.service"}})
    assert (config.find_model("a").id, config.find_model("A").id) == ("a", "A")
    assert config.find_model("openai/A").id == "A"
    assert config.find_model("openai/x").id == "openai/x"
    config = parse({"models": {"aB": "a.service", "Ab": "b.service", "openai/x": "c.service", "x:latest": "d.service"}})
    for name in ("AB", "openai/AB", "openai/x:latest"):
        with pytest.raises(ModelNotFound):
            config.find_model(name)


# --- a file that appears ----------------------------------------------------------------------------


def test_a_config_that_appears_where_it_is_looked_for_first_is_noticed(tmp_path: Path) -> None:
    users, packaged = places(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert packaged == PACKAGED
    live = LiveConfig(users, packaged)
    assert live.path == PACKAGED
    write(users, "models: {mine: mine.service}")
    assert list(live.current().models) == ["mine"]
    assert live.path == users


def test_a_config_that_appears_broken_leaves_the_packaged_one_in_force(tmp_path: Path) -> None:
    users, packaged = places(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    live = LiveConfig(users, packaged)
    before = live.current()
    write(users, "models: {")
    assert live.current() is before
    assert (live.path, str(users) in str(live.error)) == (PACKAGED, True)
    write(users, "models: {mine: mine.service}")
    assert list(live.current().models) == ["mine"]
    assert live.error is None


def test_a_config_that_disappears_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    """An editor may replace a file by deleting it first."""
    users, packaged = places(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    write(users, "models: {mine: mine.service}")
    live = LiveConfig(users, packaged)
    users.unlink()
    assert list(live.current().models) == ["mine"]
    assert "cannot read" in str(live.error)


def test_a_slow_reload_holds_up_nobody_else(tmp_path: Path) -> None:
    """Whoever comes while an edit is taken up goes on with the config in force."""
    path = write(tmp_path / "config.yaml", "models: {a: a.service}")
    live = LiveConfig(path)
    begun, may_end = threading.Event(), threading.Event()

    def on_change(config: Config | None, error: str | None) -> None:
        begun.set()
        may_end.wait(60)

    live.on_change = on_change
    path.write_text("models: {b: b.service}")
    first = threading.Thread(target=live.current)
    first.start()
    assert begun.wait(60)
    assert list(live.current().models) == ["a"]
    may_end.set()
    first.join(60)
    wait_for(lambda: list(live.current().models) == ["b"])


# --- who may read keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_mode", "keys_mode", "names"),
    [(0o600, 0o600, []), (0o644, 0o600, ["config.yaml"]), (0o600, 0o604, ["keys"]), (0o640, 0o640, [])],
)
def test_keys_that_every_user_may_read_are_named(
    tmp_path: Path, config_mode: int, keys_mode: int, names: list[str]
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    path = write(tmp_path / "config.yaml", "server: {api_keys: [k], api_keys_file: keys}\nmodels: {a: a.service}")
    write(tmp_path / "keys", "two").chmod(keys_mode)
    path.chmod(config_mode)
    found = warnings(path)
    assert [Path(warning.split()[0]).name for warning in found] == names
    assert all("chmod 600" in warning for warning in found)
    assert LiveConfig(path).warnings == found


def test_a_config_without_keys_may_be_read_by_all(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", "models: {a: a.service}")
    path.chmod(0o644)
    assert warnings(path) == ()


def test_a_folder_that_nobody_else_may_enter_hides_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "own" / "config.yaml", "server: {api_keys: [k]}\nmodels: {a: a.service}")
    path.chmod(0o644)
    path.parent.chmod(0o700)
    assert warnings(path) == ()


def test_the_check_names_keys_that_every_user_may_read(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", "server: {api_keys: [k]}\nmodels: {a: a.service}")
    path.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "-m", "systemd_llm_switch", "--check", "--config", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0
    assert (
        ran.stderr
        == f"warning: {path} holds keys, and every user of this machine may read it; run `chmod 600 {path}`\n"
    )
