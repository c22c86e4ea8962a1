"""The set-up, end to end: a fresh HOME, a real user manager, a folder whose name has all the letters that hurt."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.newcomer import Newcomer, get_json, tree_sums
from support.stack import chat, free_port, wait_for
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.unit_files import Machine, ram_bytes
from systemd_llm_switch.setup.user_manager import UserManager

MODELS = ("bge-m3", "qwen3-4b", "qwen3-coder-flash", "qwen3-coder-next", "qwen3-thinking", "qwen3-thinking-next")
SERVER_PROMPT = "📂 Path to your llama-server binary [default: "
MODELS_PROMPT = "📂 Directory where your GGUF models are stored [default: "


def _url(person: Newcomer) -> str:
    port = re.search(r"^  port: (\d+)", person.config.read_text(), re.MULTILINE)
    assert port
    return f"http://127.0.0.1:{port[1]}"


@pytest.fixture(scope="module")
def has_venv() -> bool:
    """The first run makes it."""
    return False


@pytest.mark.slow
def test_leaves_a_running_proxy(settled: Newcomer) -> None:
    assert get_json(f"{_url(settled)}/health")
    assert settled.systemctl("is-active", "llm-switch.service") == "active"


def test_enables_the_proxy_and_nothing_else(settled: Newcomer) -> None:
    assert settled.systemctl("is-enabled", "llm-switch.service") == "enabled"
    assert [settled.systemctl("is-active", f"{name}.service") for name in MODELS] == ["inactive"] * len(MODELS)
    assert [path.name for path in settled.linked.rglob("*.wants/*")] == ["llm-switch.service"]


def test_a_found_model_answers_through_the_proxy(settled: Newcomer) -> None:
    """The rendered unit, the real llama-server, a real model: nothing in between is made up."""
    reply = get_json(f"{_url(settled)}/v1/chat/completions", chat("qwen3-coder-flash"))
    assert reply["choices"][0]["message"]["content"].strip()
    settled.systemctl("stop", "llm.slice")
    assert settled.systemctl("is-active", "qwen3-coder-flash.service") == "inactive"


def test_the_models_leave_ram_for_everything_else(settled: Newcomer) -> None:
    """What systemd has in force is what was calculated."""
    limit = Machine(Path(), Path(), Path(), Path(), ram_bytes=ram_bytes()).memory_high_gib
    in_force = settled.systemctl("show", "-p", "MemoryHigh", "--value", "llm.slice")
    assert in_force == (str(limit << 30) if limit else "infinity")


def test_a_second_run_changes_no_unit(settled: Newcomer) -> None:
    before = tree_sums(settled.rendered)
    ran = settled.setup("--yes")
    assert ran.returncode == 0
    assert tree_sums(settled.rendered) == before
    assert "0 written, the others are up to date" in ran.stdout


def test_changes_no_tracked_file(newcomer: Newcomer) -> None:
    before = tree_sums(newcomer.repository)
    newcomer.setup("--yes")
    assert tree_sums(newcomer.repository) == before


def test_keeps_an_edit_of_a_rendered_unit(settled: Newcomer, tmp_path: Path) -> None:
    unit = settled.rendered / "qwen3-thinking.service"
    made = unit.read_text()
    unit.write_text(made + "# my own line\n")
    ran = settled.setup("--yes", MODELS_DIR=tmp_path)
    assert unit.read_text() == made + "# my own line\n"
    assert f"kept your own ~/{unit.relative_to(settled.home)}" in ran.stdout
    assert str(tmp_path) in (settled.rendered / "qwen3-thinking-next.service").read_text()
    unit.unlink()
    settled.setup("--yes", MODELS_DIR=tmp_path)
    assert str(tmp_path) in unit.read_text()


def test_keeps_a_unit_file_of_the_users_own(settled: Newcomer) -> None:
    own = settled.linked / "bge-m3.service"
    own.unlink()
    own.write_text("[Service]\nExecStart=/bin/true\n")
    ran = settled.setup("--yes")
    assert own.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert "kept your own ~/.config/systemd/user/bge-m3.service" in ran.stdout
    own.unlink()
    settled.setup("--yes")
    assert own.readlink() == settled.rendered / "bge-m3.service"


def test_keeps_drop_ins(settled: Newcomer) -> None:
    drop_in = settled.linked / "bge-m3.service.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNice=5\n")
    settled.setup("--yes")
    assert drop_in.read_text() == "[Service]\nNice=5\n"
    assert settled.systemctl("show", "-p", "Nice", "--value", "bge-m3.service") == "5"


def test_picks_up_changed_paths_and_remembers_them(settled: Newcomer, tmp_path: Path) -> None:
    settled.setup("--yes", MODELS_DIR=tmp_path)
    without_answers = Newcomer(settled.home, settled.repository, settled.manager)
    assert without_answers.setup("--yes").returncode == 0
    text = (settled.rendered / "bge-m3.service").read_text()
    assert f"--model {tmp_path}/" in text
    assert "llama $HOME 5%%/llama-server" in text


def test_picks_up_a_new_unit_file_and_takes_a_gone_one_away(settled: Newcomer) -> None:
    source = settled.repository / "deploy/systemd/my-model.service"
    shutil.copy(source.with_name("bge-m3.service"), source)
    settled.setup("--yes")
    assert settled.systemctl("show", "-p", "LoadState", "--value", "my-model.service") == "loaded"
    source.unlink()
    ran = settled.setup("--yes")
    assert "my-model.service is no longer part of this set-up: removed" in ran.stdout
    assert settled.systemctl("show", "-p", "LoadState", "--value", "my-model.service") == "not-found"


def test_asks_two_questions_on_a_terminal(settled: Newcomer, tmp_path: Path) -> None:
    """Again where the answer cannot be used."""
    server, models = tmp_path / "bin/llama-server", tmp_path / "gguf"
    server.parent.mkdir()
    server.symlink_to(settled.answers["LLAMA_SERVER_PATH"])
    models.mkdir()
    answers = ("/no/such/llama-server", "/bin/true", str(server), "/no/such/folder", str(models))
    shown = settled.setup_on_terminal(*answers)
    assert "! no llama-server at /no/such/llama-server; name another" in shown
    assert re.search(r"! /bin/true is not a llama-server that works here: .+; name another", shown)
    assert "! the folder /no/such/folder does not exist; name another, or make it first" in shown
    assert f"{SERVER_PROMPT}{settled.answers['LLAMA_SERVER_PATH']}]: " in shown
    assert f"{MODELS_PROMPT}{settled.answers['MODELS_DIR']}]: " in shown
    text = (settled.rendered / "qwen3-coder-next.service").read_text()
    assert f"ExecStart={server} " in text
    assert f"--model {models}/unsloth_Qwen3-Coder-Next-GGUF_" in text


def test_takes_the_defaults_when_only_enter_is_pressed(settled: Newcomer) -> None:
    before = tree_sums(settled.rendered)
    shown = settled.setup_on_terminal("", "")
    assert "runs and is started at log-in" in shown
    assert tree_sums(settled.rendered) == before


def test_the_check_names_each_finding_and_what_fixes_it(settled: Newcomer, tmp_path: Path) -> None:
    text, server = settled.config.read_text(), tmp_path / "llama-server"
    server.symlink_to(settled.answers["LLAMA_SERVER_PATH"])
    settled.setup("--yes", LLAMA_SERVER_PATH=server, MODELS_DIR=tmp_path)
    server.unlink()
    settled.config.write_text(text + '  ghost: "ghost.service"\n')
    ran = settled.setup("--check")
    settled.config.write_text(text)
    assert ran.returncode == 1
    assert f"! no llama-server at {server}" in ran.stdout
    assert "! qwen3-coder-next: no model file" in ran.stdout
    assert f"{server} -hf unsloth/Qwen3-Coder-Next-GGUF:UD-Q4_K_XL\n" in ran.stdout
    assert f"{server} -hf ggml-org/bge-m3-Q8_0-GGUF\n" in ran.stdout
    assert "! ghost: the unit ghost.service does not exist" in ran.stdout
    assert "qwen3-thinking" not in ran.stdout.partition("Check")[2]


def test_check_alone_reports_by_its_exit_code(settled: Newcomer) -> None:
    ran = settled.setup("--check")
    assert ran.returncode == 1
    assert "! bge-m3: no model file" in ran.stdout
    text = settled.config.read_text()
    settled.config.write_text(text.partition("models:")[0] + 'models:\n  a: "qwen3-coder-flash.service"\n')
    ran = settled.setup("--check")
    settled.config.write_text(text)
    assert ran.returncode == 0, ran.stdout


def test_a_broken_config_is_named(settled: Newcomer) -> None:
    text = settled.config.read_text()
    settled.config.write_text(text.replace("  port:", "  prot:"))
    ran = settled.setup("--check")
    settled.config.write_text(text)
    assert ran.returncode == 1
    assert "! config: server.prot: unknown key; did you mean 'port'?" in ran.stdout


@pytest.fixture
def failing(settled: Newcomer) -> Iterator[str]:
    """A unit of one's own that ends at once, and is the only model of the config."""
    unit, text = settled.linked / "failing.service", settled.config.read_text()
    unit.write_text("[Service]\nType=exec\nExecStart=/bin/sh -c 'echo no room on the card; exit 3'\n")
    settled.systemctl("daemon-reload")
    settled.config.write_text(f"{text.partition('models:')[0]}models:\n  mine: {unit.name}\n")
    yield unit.name
    settled.config.write_text(text)
    settled.systemctl("reset-failed", unit.name)
    unit.unlink()


def test_the_check_names_a_unit_whose_last_run_failed(settled: Newcomer, failing: str) -> None:
    assert settled.setup("--check").returncode == 0
    settled.systemctl("start", failing)
    wait_for(lambda: settled.systemctl("is-active", failing) == "failed")
    ran = settled.setup("--check")
    assert ran.returncode == 1
    assert "! mine: the last run of failing.service failed (Result: exit-code)\n" in ran.stdout
    assert f"journalctl --user -u {failing} -n 30\n" in ran.stdout


def test_the_check_shows_what_the_running_proxy_knows(settled: Newcomer, failing: str) -> None:
    """Why a model could not be loaded; also of a proxy that wants a key, which nobody sees."""
    text = settled.config.read_text()
    settled.config.write_text(text.replace("server:\n", "server:\n  api_keys: [hush-hush]\n"))
    request = urllib.request.Request(
        f"{_url(settled)}/api/load", b'{"model": "mine"}', {"Authorization": "Bearer hush-hush"}
    )
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(request)
    ran = settled.setup("--check")
    assert "! mine: the last load failed: model 'mine' failed to start: unit failing.service: " in ran.stdout
    assert f"journalctl --user -u {failing} -n 30\n" in ran.stdout
    assert "the last run" not in ran.stdout
    assert "hush" not in ran.stdout + ran.stderr


def test_the_check_names_a_broken_edit_that_the_proxy_does_not_use(settled: Newcomer, tmp_path: Path) -> None:
    """Here in another file than this shell's."""
    text, other = settled.config.read_text(), tmp_path / "config.yaml"
    other.write_text(text)
    settled.config.write_text(text.replace("  port:", "  prot:"))
    ran = settled.setup("--check", LLM_SWITCH_CONFIG=other)
    settled.config.write_text(text)
    assert "! the running proxy goes on with its last good config: server.prot: unknown key" in ran.stdout
    assert f"this check {other}\n" in ran.stdout
    assert f"LLM_SWITCH_CONFIG={settled.config} ./setup.sh --check\n" in ran.stdout


def test_the_check_names_a_proxy_that_does_not_run_or_answer(settled: Newcomer) -> None:
    text = settled.config.read_text()
    settled.config.write_text(re.sub(r"^  port: \d+", f"  port: {free_port()}", text, flags=re.MULTILINE))
    deaf = settled.setup("--check")
    settled.config.write_text(text)
    settled.systemctl("stop", "llm-switch.service")
    stopped = settled.setup("--check")
    assert "! llm-switch.service runs, but nothing answers at http://127.0.0.1:" in deaf.stdout
    assert "systemctl --user restart llm-switch.service\n" in deaf.stdout
    assert "! llm-switch.service does not run\n" in stopped.stdout
    assert "systemctl --user start llm-switch.service\n" in stopped.stdout


@pytest.mark.slow
def test_without_any_model_file_the_next_step_is_a_download(settled: Newcomer, tmp_path: Path) -> None:
    with_one = settled.setup("--yes")
    assert "Download a model" not in with_one.stdout
    bare = Newcomer(settled.home, settled.repository, settled.manager, settled.answers | {"MODELS_DIR": str(tmp_path)})
    shown = bare.setup("--yes").stdout.partition("\nNext\n")[2].splitlines()
    assert shown[0] == "  Download a model (Ctrl-C once it listens), and run ./setup.sh again:"
    assert shown[1].endswith("llama-server' -hf unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M")


def test_a_proxy_that_cannot_start_shows_why(settled: Newcomer) -> None:
    text = settled.config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        settled.config.write_text(re.sub(r"^  port: \d+", f"  port: {taken}", text, flags=re.MULTILINE))
        ran = settled.setup("--yes")
    settled.config.write_text(text)
    settled.systemctl("stop", "llm-switch.service")
    assert ran.returncode == 1
    assert "llm-switch.service did not start. Its last words:" in ran.stderr
    assert str(taken) in ran.stderr


def test_rendered_units_verify_clean(settled: Newcomer) -> None:
    units = sorted(str(path) for path in settled.linked.iterdir() if path.suffix in (".service", ".slice"))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--user", *units],
        env=settled.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(units) == len(list((settled.repository / "deploy/systemd").iterdir()))


def test_uninstall_undoes_it_and_keeps_what_is_the_users(settled: Newcomer) -> None:
    edited = settled.rendered / "qwen3-thinking.service"
    edited.write_text(edited.read_text() + "# mine\n")
    models = tree_sums(Path(settled.answers["MODELS_DIR"]))
    ran = settled.setup("--uninstall")
    assert ran.returncode == 0, ran.stderr
    assert settled.systemctl("is-active", "llm-switch.service") == "inactive"
    assert not any(path.is_symlink() for path in settled.linked.rglob("*"))
    assert [path.name for path in settled.rendered.iterdir()] == ["qwen3-thinking.service"]
    assert f"kept ~/{edited.relative_to(settled.home)}" in ran.stdout
    assert "kept ~/.config/systemd-llm-switch/config.yaml (your config)" in ran.stdout
    assert settled.config.exists()
    assert tree_sums(Path(settled.answers["MODELS_DIR"])) == models
    edited.unlink()


def test_what_the_uninstall_kept_is_linked_again_and_unlinked_again(settled: Newcomer) -> None:
    """A unit that stayed for its edit is the person's, its link ours: also with the next set-up and uninstall."""
    edited, link = settled.rendered / "qwen3-thinking.service", settled.linked / "qwen3-thinking.service"
    edited.write_text(edited.read_text() + "# mine\n")
    settled.setup("--uninstall")
    settled.setup("--yes")
    assert link.readlink() == edited
    ran = settled.setup("--uninstall")
    assert not link.is_symlink()
    assert edited.read_text().endswith("# mine\n")
    assert f"kept ~/{edited.relative_to(settled.home)}" in ran.stdout
    edited.unlink()


@pytest.fixture
def own_config(settled: Newcomer) -> Iterator[str]:
    """The text of the person's config, which comes back in the end; so does the packaged one."""
    text, packaged = settled.config.read_text(), settled.repository / "src/systemd_llm_switch/config.yaml"
    as_packaged = packaged.read_text()
    packaged.write_text(text)  # for its ports
    yield text
    for path in settled.config.parent.iterdir():
        path.unlink()
    settled.config.write_text(text)
    packaged.write_text(as_packaged)


def _edit_demo_config(person: Newcomer, own_config: str, edit: str) -> str:
    """As if the demo had written its config, on the ports of one's own, and somebody added a line; the whole text."""
    ledger = Ledger.load(Places.of(person.env))
    demos = (person.repository / "deploy/demo/config.yaml").read_text().partition("models:")[2]
    text = f"{own_config.partition('models:')[0]}models:{demos}"
    person.config.unlink(missing_ok=True)
    ledger.put_config(person.config, text)
    ledger.save()
    person.config.write_text(text + edit)
    return text + edit


def test_an_edited_config_of_the_demo_is_put_aside_by_the_real_set_up(settled: Newcomer, own_config: str) -> None:
    """Its models are gone, so the proxy would have nothing to serve. A second edit does not push the first one out."""
    for name in ("demo-edited.yaml", "demo-edited-2.yaml"):
        text = _edit_demo_config(settled, own_config, f"# for {name}\n")
        ran = settled.setup("--yes")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert not settled.config.exists()
        assert settled.config.with_name(name).read_text() == text
        assert f"kept ~/.config/systemd-llm-switch/{name} (your edit of the demo's config)" in ran.stdout


def test_one_with_a_model_of_ones_own_stays_and_the_check_says_what_to_take_out(
    settled: Newcomer, own_config: str
) -> None:
    text = _edit_demo_config(settled, own_config, '  mine: "qwen3-coder-flash.service"\n')
    ran = settled.setup("--yes")
    assert settled.config.read_text() == text
    assert "! demo-chat: the unit demo-chat.service does not exist" in ran.stdout
    assert "take it out of ~/.config/systemd-llm-switch/config.yaml, or bring the demo back" in ran.stdout


def test_uninstall_twice_is_no_error(newcomer: Newcomer) -> None:
    assert newcomer.setup("--uninstall").returncode == 0
    ran = newcomer.setup("--uninstall")
    assert ran.returncode == 0
    assert "no unit was installed" in ran.stdout


def test_without_a_user_manager_it_points_to_the_demo(newcomer: Newcomer, tmp_path: Path) -> None:
    nobody = Newcomer(tmp_path / "home", newcomer.repository, None)
    ran = nobody.setup("--yes")
    assert ran.returncode == 1
    assert "no systemd user manager answers" in ran.stderr
    assert "--demo" in ran.stderr


def test_an_unknown_option_is_wrong_usage(newcomer: Newcomer) -> None:
    ran = newcomer.setup("--demmo")
    assert ran.returncode == 2
    assert "usage: ./setup.sh" in ran.stderr
    assert newcomer.setup("--help").stdout.startswith("usage: ./setup.sh")


def test_a_python_that_is_too_old_is_named(newcomer: Newcomer, tmp_path: Path) -> None:
    """Only the shell's own tools are on PATH, so no Python is found."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}" if tool != "bash" else "/bin/bash")
    ran = newcomer.setup(PATH=tmp_path)
    assert ran.returncode == 1
    assert "Python 3.11 or newer is needed" in ran.stderr


@pytest.mark.slow
def test_demo_shows_it_at_work_and_leaves_nothing(
    newcomer: Newcomer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No manager, no llama-server, no model; a config of one's own stays; again beside a model that was added; a
    refusal stops nothing; all of it stops."""
    visitor = Newcomer(tmp_path / "home", newcomer.repository, None)
    ports = {"DEMO_PORT": str(free_port()), "DEMO_BACKEND_PORT": str(free_port())}
    visitor.answers.update(ports)
    visitor.config.parent.mkdir(parents=True)
    visitor.config.write_text("models: {mine: mine.service}\n")
    with _torn_down(visitor):
        with socket.create_server(("127.0.0.1", int(ports["DEMO_PORT"]))):
            refused = visitor.setup("--demo")
        first = visitor.setup("--demo", timeout_s=900)
        _command(visitor, "unload")
        with socket.create_server(("127.0.0.1", int(ports["DEMO_BACKEND_PORT"]))):
            refused_again = visitor.setup("--demo")
            health = get_json(f"http://127.0.0.1:{ports['DEMO_PORT']}/health")
        model = next(Places.of(visitor.env).wheels.rglob("*.gguf"))
        _command(visitor, "add", "added", str(model))
        second = visitor.setup("--demo")
        _command(visitor, "remove", "added")
        listed = get_json(f"http://127.0.0.1:{ports['DEMO_PORT']}/v1/models")
    assert refused.returncode == 1
    assert f"port {ports['DEMO_PORT']} is in use by another program" in refused.stderr
    assert f"port {ports['DEMO_BACKEND_PORT']} is in use by another program" in refused_again.stderr
    assert health == {"status": "ok"}
    for ran in (first, second):
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert re.search(r"demo-chat: .*\n +“\w.+”\n +switched in \d+\.\d\d s", ran.stdout), ran.stdout
        assert "demo-embed: a vector of 576 numbers" in ran.stdout
        assert "--uninstall" in ran.stdout
        assert "    ~/.local/bin/llm-switch status " in ran.stdout
        assert 'export PATH="$HOME/.local/bin:$PATH"' in ran.stdout
        assert f"export LLM_SWITCH_CONFIG={visitor.config.with_name('demo.yaml')}\n" in ran.stdout
    assert [model["id"] for model in listed["data"]] == ["demo-chat", "demo-writer", "demo-embed"]
    assert visitor.config.read_text() == "models: {mine: mine.service}\n"
    assert not visitor.config.with_name("demo.yaml").exists()
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0
    assert Ledger.load(Places.of(visitor.env)).units == {}


def _command(visitor: Newcomer, *words: str) -> None:
    """A verb of the command, on the demo's config."""
    env = visitor.env | {"LLM_SWITCH_CONFIG": str(visitor.config.with_name("demo.yaml"))}
    command = [str(visitor.home / ".local/bin/llm-switch"), *words]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@contextlib.contextmanager
def _torn_down(visitor: Newcomer) -> Iterator[None]:
    """Uninstalled at the end, as the demo's last line says; and ended in any case."""
    try:
        yield
        ran = visitor.setup("--uninstall")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert UserManager.of_home(visitor.home) is None
    finally:
        manager = UserManager.of_home(visitor.home)
        if manager:
            manager.stop()
