"""The configuration: what is accepted, what is refused and with which words, and how an edit takes effect."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.no_threads import no_more_threads
from support.stack import ROOT
from systemd_llm_switch.config.file import PACKAGED, LiveConfig, find, load
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError

MODELS = {"a": "a.service"}


def problems(raw: object) -> dict[str, str]:
    """What is wrong with a config: path and message."""
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    return {problem.path: problem.message for problem in caught.value.problems}


def problem_of(section: str, **values: Any) -> str:
    """The one problem of a section, `server` or `models.a`."""
    model = {"unit": "a.service"}
    raw = {"server": values} if section == "server" else {"models": {"a": model | values}}
    ((path, message),) = problems({"models": MODELS, **raw}).items()
    assert path.removesuffix(".0") == f"{section}.{next(iter(values))}"
    return message


# --- what is accepted -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "path", "words"),
    [
        (
            {"a": "a.service", "b": {"unit": "b.service", "vram": 0, "llama_url": "http://LOCALHOST:3004/"}},
            "models.b.llama_url", "may be loaded together",
        ),
        ({"a": {"unit": "a.service", "llama_url": "http://localhost:3002"}}, "models.a.llama_url", "the proxy itself"),
    ],
)  # fmt: skip
def test_another_spelling_of_a_url_is_the_same_url(models: dict[str, object], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"models": models})
    (problem,) = caught.value.problems
    assert problem.path == path
    assert words in problem.message


def test_everything_but_the_models_has_a_default() -> None:
    config = parse({"models": MODELS})
    server = config.server
    assert (server.host, server.port, server.llama_url) == ("127.0.0.1", 3002, "http://127.0.0.1:3004")
    assert (server.health_timeout, server.request_timeout) == (120, 1800)
    assert (server.queue_limit, server.max_body_mb) == (64, 64)
    assert (server.streaming, server.vram, server.max_wait, server.min_resident) == ("buffered", None, None, None)
    assert config.repair.rescue
    assert (config.models["a"].unit, config.models["a"].llama_url) == ("a.service", "http://127.0.0.1:3004")


def test_the_short_and_the_long_form_mean_the_same() -> None:
    assert parse({"models": {"a": "a.service"}}) == parse({"models": {"a": {"unit": "a.service"}}})


def test_a_model_takes_the_servers_values_unless_it_has_its_own() -> None:
    server = {"llama_url": "http://127.0.0.1:4000/", "streaming": "live"}
    own = {"unit": "b.service", "llama_url": "http://127.0.0.1:5000", "streaming": "buffered"}
    models = parse({"server": server, "models": {"a": "a.service", "b": own}}).models
    assert (models["a"].llama_url, models["a"].streaming) == ("http://127.0.0.1:4000", "live")
    assert (models["b"].llama_url, models["b"].streaming) == ("http://127.0.0.1:5000", "buffered")


def test_every_documented_key_is_read() -> None:
    raw = {
        "server": {
            "host": "::1", "port": 1, "health_timeout": 0.5, "request_timeout": 2, "queue_limit": 0, "max_body_mb": 0.1,
            "vram": 24, "max_wait": 0, "min_resident": 0, "drain_timeout": 0, "preload": ["b"], "api_keys": ["k"],
            "allow_unauthenticated": False, "cors_origins": ["http://x"], "allowed_hosts": ["box"],
        },
        "models": {
            "a": {
                "unit": "a@1.service", "aliases": ["b"], "vram": 8, "ttl": 60,
                "params": {"top_k": 1}, "force": {"n": 1},
            },
        },
        "repair": {"rescue": False},
    }  # fmt: skip
    config = parse(raw)
    server, model = config.server, config.models["a"]
    assert (server.host, server.is_loopback, server.queue_limit, server.max_body_mb) == ("::1", True, 0, 0.1)
    assert (server.vram, server.max_wait, server.drain_timeout, server.preload) == (24, 0, 0, ("b",))
    assert (model.vram, model.ttl, model.params, model.force) == (8, 60, {"top_k": 1}, {"n": 1})
    assert not config.repair.rescue


def test_names_are_ids_and_aliases() -> None:
    config = parse({"models": {"a": {"unit": "a.service", "aliases": ["x", "y"]}, "b": "b.service"}})
    assert {name: model.id for name, model in config.names.items()} == {"a": "a", "x": "a", "y": "a", "b": "b"}


def test_a_config_cannot_be_changed() -> None:
    config = parse({"models": {"a": {"unit": "a.service", "params": {"x": 1}}}})
    with pytest.raises(TypeError):
        config.models["b"] = config.models["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        config.models["a"].params["x"] = 2  # type: ignore[index]


def test_the_packaged_config_is_valid_and_has_the_missions_models() -> None:
    config = load(PACKAGED)
    units = {name: model.unit for name, model in config.models.items()}
    assert units == {
        name: f"{name}.service" for name in ("qwen3-4b", "qwen3-coder-flash", "qwen3-coder-next", "bge-m3")
    }
    assert config.server == parse({"models": MODELS}).server


def test_what_the_packaged_config_comments_out_is_true(tmp_path: Path) -> None:
    """Each commented key shows its default, and the two other models work when their # is taken out."""
    text = PACKAGED.read_text()
    for name in ("qwen3-thinking:", "qwen3-thinking-next:"):
        assert f"  # {name}" in text
        text = text.replace(f"  # {name}", f"  {name}")
    server, models = text.split("\nmodels:")
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"(?m)^  # (?=\w+:)", "  ", server) + "\nmodels:" + models)
    config = load(path)
    assert config.server == parse({"models": MODELS}).server
    assert config.models["qwen3-thinking-next"].unit == "qwen3-thinking-next.service"


# --- what is refused --------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    raw = {
        "server": {"prot": 3002, "port": "x", "queue_limit": -1},
        "models": {"a": {"unit": "a.service", "alias": ["x"]}, "b": {}, "c": "c", 5: "d.service"},
        "repair": {"rescu": True},
        "modles": {},
    }
    assert problems(raw) == {
        "modles": "unknown key; did you mean 'models'?",
        "server.prot": "unknown key; did you mean 'port'?",
        "server.port": "must be a number, not 'x'",
        "server.queue_limit": "must be 0 or more",
        "repair.rescu": "unknown key; did you mean 'rescue'?",
        "models.a.alias": "unknown key; did you mean 'aliases'?",
        "models.b": "needs a unit, for instance unit: my-model.service",
        "models.c.unit": "'c' is not a valid name of a systemd service; did you mean c.service?",
        "models.5": "the model id must be a string (put it in quotes)",
    }


@pytest.mark.parametrize("raw", [None, [], "models", 5])
def test_a_file_without_a_mapping_is_refused(raw: object) -> None:
    assert problems(raw) == {"": "the file must hold a mapping with `models:`"}


@pytest.mark.parametrize("models", [None, {}, [], "a.service"])
def test_a_config_needs_a_model(models: object) -> None:
    assert "at least one model" in problems({"models": models})["models"]


@pytest.mark.parametrize("models", [["a", "b"], "a:a.service"])
def test_models_in_another_form_are_named_as_such(models: object) -> None:
    """`- a: a.service`, or no blank behind the colon: there are models, but not as a mapping."""
    assert problems({"models": models})["models"].startswith("must be a mapping with at least one model, for instance ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("health_timeout", "2m", "must be a number, not '2m'"),
        ("port", "3002", "must be a number, not '3002' (take the quotes away)"),
        ("strict_names", "true", "must be true or false, not 'true' (take the quotes away)"),
        ("strict_names", "on", "must be true or false, not 'on'"),
        ("streaming", "Live", "must be one of buffered, live, not 'Live'"),
        ("api_keys", "secret", "must be a list of strings, for instance [one, two]"),
    ],
)
def test_a_wrong_value_is_shown_unless_it_may_be_a_key(key: str, value: object, message: str) -> None:
    assert problem_of("server", **{key: value}) == message


def test_no_unit_is_proposed_that_is_not_valid_itself() -> None:
    assert problems({"models": {"a": "my model"}})["models.a.unit"].endswith("is not a valid name of a systemd service")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("port", 0, "1 to 65535"), ("port", 65536, "1 to 65535"), ("port", 80.5, "whole number"),
        ("port", True, "a number"), ("health_timeout", 0, "greater than 0"), ("health_timeout", "120", "a number"),
        ("request_timeout", float("inf"), "greater than 0"), ("request_timeout", float("nan"), "a number"),
        pytest.param("request_timeout", 10**400, "number", id="huge"),
        ("max_body_mb", -1, "greater than 0"), ("vram", 0, "greater than 0"),
        ("host", "", "a string"), ("host", 5, "a string"), ("streaming", "yes", "one of buffered, live"),
        ("streaming", ["live"], "one of buffered, live"), ("preload", "a", "list of strings"),
        ("preload", [5], "a string"), ("allow_unauthenticated", "no", "true or false"),
        ("llama_url", "127.0.0.1:3004", "http://127.0.0.1:3004"), ("llama_url", "http://127.0.0.1", "must look like"),
        ("llama_url", "https://127.0.0.1:1", "must look like"), ("llama_url", "http://h:1/v1", "must look like"),
        ("llama_url", "http://h:x", "must look like"), ("llama_url", "http://h:1?q", "must look like"),
        ("llama_url", "http://h:1#f", "must look like"), ("llama_url", "http://[::1", ""),
        # Names for which the resolver, or requests, raises an error of its own kind, not an OSError.
        ("llama_url", f"http://{'h' * 64}:1", "must look like"), ("llama_url", "http://.h:1", "must look like"),
        ("llama_url", "http://a..b:1", "must look like"), ("llama_url", "http://*:1", "must look like"),
        ("llama_url", "http://h\u00e9:1", "must look like"), ("llama_url", "http://me:word@h:1", "must look like"),
        ("host", "a..b", "an IP address or the name"), ("host", "h" * 64, "an IP address or the name"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_the_server_is_reported(key: str, value: object, words: str) -> None:
    assert words in problem_of("server", **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("aliases", "x", "list of strings"), ("vram", -1, "0 or more"), ("vram", None, "a number"),
        ("ttl", 0, "greater than 0"), ("params", [], "a mapping"), ("params", {1: 2}, "a mapping"),
        ("params", {"stream": True}, "must not set 'stream'"), ("force", {"model": "x"}, "must not set 'model'"),
        ("streaming", "Live", "one of"), ("llama_url", "x", "must look like"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_a_model_is_reported(key: str, value: object, words: str) -> None:
    assert words in problem_of("models.a", **{key: value})


@pytest.mark.parametrize(
    "unit", ["", "a", "a.slice", "a b.service", "../a.service", "a/b.service", "a.service.d", "@.timer", 5, None]
)
def test_an_invalid_service_name_is_refused(unit: object) -> None:
    """systemctl would take it for something else, or for an option."""
    found = problems({"models": {"a": {"unit": unit}}})
    assert list(found) == ["models.a.unit"]


@pytest.mark.parametrize("unit", ["a.service", "llama@qwen3-coder.service", "a_b:c\\x2d.service"])
def test_what_is_a_service_is_accepted(unit: str) -> None:
    assert parse({"models": {"a": unit}}).models["a"].unit == unit


def test_a_name_means_one_model() -> None:
    models = {
        "a": {"unit": "a.service", "aliases": ["b", "x", "a", "y", "y"]},
        "b": {"unit": "b.service", "aliases": ["x"]},
    }
    with pytest.raises(ConfigError) as caught:
        parse({"models": models})
    assert [str(problem) for problem in caught.value.problems] == [
        "models.a.aliases: 'b' already names 'b'",
        "models.a.aliases: 'a' already names 'a'",
        "models.a.aliases: 'y' already names 'a'",
        "models.b.aliases: 'x' already names 'a'",
    ]


@pytest.mark.parametrize(
    ("card", "one", "other", "is_refused"),
    [
        (None, None, None, False),  # one at a time: a port is enough
        (24, None, None, False),  # each needs the whole card
        (24, 16, None, False),
        (24, 16, 12, False),
        (24, 12, 12, True),
        (24, 8, 8, True),
        (None, 0, None, True),  # on the CPU: beside anything
        (24, 0, 0, True),
        (None, 8, 8, False),  # the card's size is not known
    ],
)
def test_models_that_fit_together_need_a_port_each(
    card: float | None, one: float | None, other: float | None, is_refused: bool
) -> None:
    def models(second_port: int) -> dict[str, Any]:
        a = {"unit": "a.service"} | ({} if one is None else {"vram": one})
        b = {"unit": "b.service"} | ({} if other is None else {"vram": other})
        return {"a": a, "b": {**b, "llama_url": f"http://127.0.0.1:{second_port}"}}

    server = {} if card is None else {"vram": card}
    assert set(parse({"server": server, "models": models(3005)}).models) == {"a", "b"}
    if is_refused:
        found = problems({"server": server, "models": models(3004)})
        assert "may be loaded together, so each needs its own port" in found["models.b.llama_url"]
    else:
        assert set(parse({"server": server, "models": models(3004)}).models) == {"a", "b"}


def test_a_model_is_compared_with_those_of_other_units_whatever_is_smaller() -> None:
    """The smallest model before `c` has the same unit; the next one does not, and fits beside it."""
    models = {
        name: {"unit": unit, "vram": vram} for name, unit, vram in (("a", "x", 12), ("b", "y", 13), ("c", "x", 8))
    }
    for model in models.values():
        model["unit"] = f"{model['unit']}.service"
    found = problems({"server": {"vram": 24}, "models": models})
    assert list(found) == ["models.c.llama_url"]
    assert "'c' and 'b' may be loaded together" in found["models.c.llama_url"]


def test_one_unit_may_have_two_names_but_one_port() -> None:
    assert len(parse({"server": {"vram": 24}, "models": {"a": "x.service", "b": "x.service"}}).models) == 2
    other = {"unit": "x.service", "llama_url": "http://127.0.0.1:9"}
    found = problems({"models": {"a": "x.service", "b": other}})
    assert found == {"models.b.llama_url": "differs from that of 'a', which has the same unit"}


def test_only_a_model_can_be_preloaded() -> None:
    models = {"a": {"unit": "a.service", "aliases": ["x"]}}
    assert parse({"server": {"preload": ["a", "x"]}, "models": models}).server.preload == ("a", "x")
    found = problems({"server": {"preload": ["a", "z"]}, "models": models})
    assert found == {"server.preload.1": "'z' is not a configured model"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-box"])
def test_the_network_needs_a_key_or_a_clear_word(host: str) -> None:
    assert "opens the proxy to the network" in problems({"server": {"host": host}, "models": MODELS})["server.host"]
    for word in ({"api_keys": ["k"]}, {"allow_unauthenticated": True}):
        assert parse({"server": {"host": host, **word}, "models": MODELS}).server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert parse({"server": {"host": host}, "models": MODELS}).server.is_loopback


def test_a_wrong_entry_of_a_list_is_reported_by_its_index() -> None:
    """Which of ten keys it is cannot be told by its text; a number most often lacks its quotes."""
    server = {"api_keys": ["sk-one", "sk-two", 31415], "allowed_hosts": ["my-box.lan", "http://my-box.lan"]}
    found = problems({"server": server, "models": {"a": {"unit": "a.service", "aliases": ["b", None]}}})
    assert found["server.api_keys.2"] == "must be a string (put it in quotes)"
    assert found["server.allowed_hosts.1"].startswith("must be a name like my-box.lan")
    assert found["models.a.aliases.1"] == "must be a string that is not empty"


def test_no_message_holds_a_key() -> None:
    for wrong in ("sk-secret", [5, "sk-secret"], {"sk-secret": 1}):
        assert "sk-secret" not in problem_of("server", api_keys=wrong)
    assert "sk-secret" not in repr(parse({"server": {"api_keys": ["sk-secret"]}, "models": MODELS}))


# --- files ------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: [", "is not valid YAML"),
        ("models:\n  a: x.service\n  a: y.service\n", "duplicate key 'a', in line 3, column 3"),
        ("server: {port: 1, port: 2}\nmodels: {a: a.service}", "duplicate key 'port'"),
        ("models: !!python/object:os.system {}", "is not valid YAML"),
        ("a: b\n---\nc: d", "is not valid YAML"),
        ("models: {? [a] : b}", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("repair: 2024-13-45", "is not valid YAML"),
        ("server: {port: 0x_}", "is not valid YAML"),
        ("server: {port: !!int abc}", "is not valid YAML"),
        ("models: !!map 5", "is not valid YAML"),
        ("models: " + "[" * 3000, "is not valid YAML"),
        ("models: {a: {unit: a.service, params: {day: 2024-01-01}}}", "must hold only what JSON can express"),
        ("models: {a: {unit: a.service, params: &p {x: *p}}}", "an alias refers to nothing that is complete"),
        ("models: {a: *nothing}", "an alias refers to nothing"),
        ("models:\n\ta: a.service", "a tab in line 2, column 1; use spaces"),
        ("models:\n  a:\n \t unit: a.service", "a tab in line 3, column 2; use spaces"),
        ("", "must hold a mapping"),
    ],
)
def test_a_malformed_file_is_reported(tmp_path: Path, text: str, words: str) -> None:
    """A doubled key most of all: YAML itself lets the later one win in silence."""
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path / "config.yaml", text))


def test_a_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"models: {\xff: a.service}")
    with pytest.raises(ConfigError, match="is not valid UTF-8: byte 0xff in line 1"):
        load(tmp_path / "config.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nope\.yaml: No such file"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load(tmp_path)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    """YAML's own way of saying the same of several models once."""
    text = "models:\n  a: &base {unit: a.service, ttl: 60}\n  b: {<<: *base, unit: b.service}\n"
    models = load(write(tmp_path / "config.yaml", text)).models
    assert (models["b"].unit, models["b"].ttl) == ("b.service", 60)


def test_keys_may_stand_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a line, beside the config or where a variable (a systemd credential) says."""
    text = "server: {{api_keys: [one], api_keys_file: {}}}\nmodels: {{a: a.service}}"
    write(tmp_path / "keys", "# ours\n\n two \nthree\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for named in ("keys", str(tmp_path / "keys"), '"${CREDENTIALS_DIRECTORY}/keys"'):
        config = load(write(tmp_path / "config.yaml", text.format(named)))
        assert config.server.api_keys == ("one", "two", "three")
    for empty in ("none", "empty"):
        write(tmp_path / "empty", "# nothing\n")
        with pytest.raises(ConfigError, match=r"server\.api_keys_file: "):
            load(write(tmp_path / "config.yaml", text.format(empty)))


def test_the_file_is_found_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, $LLM_SWITCH_CONFIG, $XDG_CONFIG_HOME, ~/.config, the packaged one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    xdg, home = tmp_path / "xdg/systemd-llm-switch/config.yaml", tmp_path / ".config/systemd-llm-switch/config.yaml"
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert find(None, environ) == find(None, {}) == PACKAGED
    write(home, "")
    assert find(None, {}) == find(None, {"XDG_CONFIG_HOME": ""}) == home
    assert find(None, environ) == PACKAGED
    write(xdg, "")
    assert find(None, environ) == xdg
    environ["LLM_SWITCH_CONFIG"] = "env.yaml"
    assert find(None, environ) == Path("env.yaml")
    assert find("argument.yaml", environ) == Path("argument.yaml")
    assert find(None, environ | {"LLM_SWITCH_CONFIG": ""}) == xdg


# --- a file that changes ----------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "config.yaml", "models: {a: a.service}")


def ids(live: LiveConfig) -> list[str]:
    return list(live.current().models)


def test_an_edit_takes_effect_at_once(path: Path) -> None:
    live = LiveConfig(path)
    assert ids(live) == ["a"]
    path.write_text("models: {b: b.service, c: c.service}")
    assert ids(live) == ["b", "c"]


def test_an_editors_new_file_is_seen_even_with_the_old_ones_size_and_time(path: Path) -> None:
    live = LiveConfig(path)
    before = path.stat()
    write(path.with_name("new"), "models: {b: b.service}").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ids(live) == ["b"]


def test_a_broken_edit_keeps_the_last_good_config(path: Path) -> None:
    live = LiveConfig(path)
    good = live.current()
    for broken in ("models: {", "models: {}", "models: {b: b.service}\nserver: {x: 1}"):
        path.write_text(broken)
        assert live.current() is good
        assert live.error
    path.unlink()
    assert live.current() is good
    assert "cannot read" in str(live.error)
    path.write_text("models: {b: b.service}")
    assert ids(live) == ["b"]
    assert live.error is None


def test_an_unchanged_file_is_not_read_again(path: Path) -> None:
    live = LiveConfig(path)
    assert live.current() is live.current()


def test_a_change_is_reported_once_before_a_request_sees_it(path: Path) -> None:
    """Whoever asks first has it told; the others wait, and none gets a model that the listener does not know."""
    live = LiveConfig(path)
    told: list[tuple[Config | None, str | None]] = []
    live.on_change = lambda config, error: told.append((config, error))
    path.write_text("models: {b: b.service}")
    start = threading.Barrier(8)
    seen: list[tuple[list[str], int]] = []

    def ask() -> None:
        start.wait()
        names = ids(live)
        seen.append((names, len(told)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(config.models) for config, _ in told if config] == [["b"]]
    assert all(count == 1 for names, count in seen if names == ["b"])
    path.write_text("models: {")
    live.current()
    live.current()
    assert [error is not None for _, error in told] == [False, True]


def test_an_edit_is_read_once_also_if_it_names_a_new_key_file(path: Path) -> None:
    live = LiveConfig(path)
    changes: list[Config | None] = []
    live.on_change = lambda config, error: changes.append(config)
    write(path.with_name("keys"), "one")
    path.write_text("server: {api_keys_file: keys}\nmodels: {a: a.service}")
    for _ in range(3):
        assert live.current().server.api_keys == ("one",)
    assert len(changes) == 1


def test_an_edit_is_read_later_if_there_was_no_thread_for_it(path: Path) -> None:
    live = LiveConfig(path)
    path.write_text("models: {b: b.service}")
    with no_more_threads():
        assert ids(live) == ["a"]
    assert ids(live) == ["b"]


def test_an_edit_of_the_key_file_takes_effect_too(path: Path) -> None:
    keys = write(path.with_name("keys"), "one")
    path.write_text("server: {api_keys_file: keys}\nmodels: {a: a.service}")
    live = LiveConfig(path)
    assert live.current().server.api_keys == ("one",)
    keys.write_text("two\nthree")
    assert live.current().server.api_keys == ("two", "three")


# --- the command ------------------------------------------------------------------------------------


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("LLM_SWITCH_CONFIG", "XDG_CONFIG_HOME")}
    return subprocess.run(
        [sys.executable, "-m", "systemd_llm_switch", *arguments],
        env={**kept, "PYTHONPATH": str(ROOT / "src"), **environ},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_check_says_ok_for_the_config_in_force(tmp_path: Path) -> None:
    packaged = run("--check", HOME=str(tmp_path))
    assert (packaged.returncode, packaged.stderr) == (0, "")
    assert packaged.stdout == f"{PACKAGED}: ok; models: qwen3-4b, qwen3-coder-flash, qwen3-coder-next, bge-m3\n"
    own = write(tmp_path / ".config/systemd-llm-switch/config.yaml", "models: {mine: mine.service}")
    assert run("--check", HOME=str(tmp_path)).stdout == f"{own}: ok; models: mine\n"


def test_check_names_every_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", "server: {prot: 1}\nmodels: {a: b}\n")
    for ran in (run("--check", "--config", str(path)), run("--check", LLM_SWITCH_CONFIG=str(path))):
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.splitlines() == [
            f"{path}: 2 problems",
            "  server.prot: unknown key; did you mean 'port'?",
            "  models.a.unit: 'b' is not a valid name of a systemd service; did you mean b.service?",
        ]


def test_a_proxy_with_a_broken_config_does_not_start(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", yaml.safe_dump({"models": {"a": {"unit": "a.service", "ttll": 5}}}))
    ran = run("--config", str(path))
    assert ran.returncode == 1
    assert "models.a.ttll: unknown key; did you mean 'ttl'?" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_host_of_the_network_on_the_command_line_needs_a_key_too(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", "models: {a: a.service}")
    ran = run("--config", str(path), "--host", "0.0.0.0")
    assert ran.returncode == 1
    assert "server.api_keys" in ran.stderr


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "65536"], ["--prot", "1"], ["extra"]])
def test_wrong_arguments_are_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    path = write(tmp_path / "config.yaml", "models: {a: a.service}")
    ran = run("--config", str(path), *arguments)
    assert ran.returncode == 2
    assert "usage: python -m systemd_llm_switch" in ran.stderr
