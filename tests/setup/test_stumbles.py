"""What people stumbled over in the set-up: each has one clear sentence, and nothing that worked is lost."""

from __future__ import annotations

import fcntl
import http.server
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.newcomer import Newcomer, copy_repository, get_json, lend_venv, tree_sums
from support.stack import ROOT, free_port, wait_for


@pytest.fixture
def bare(newcomer: Newcomer, tmp_path: Path) -> Newcomer:
    """Somebody else with the same clone, who has set nothing up and has no user manager."""
    return Newcomer(tmp_path / "home", newcomer.repository, None)


def port_of(person: Newcomer) -> int:
    found = re.search(r"^  port: (\d+)", person.config.read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_setup_sh_works_through_a_link(bare: Newcomer, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(bare.repository / "setup.sh")
    (tmp_path / "second").symlink_to("first")
    ran = subprocess.run([tmp_path / "second", "--help"], env=bare.env, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("usage: ./setup.sh")


def test_a_file_in_the_current_folder_is_not_imported(bare: Newcomer, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('the wrong argparse')\n")
    command = [str(bare.repository / "setup.sh"), "--help"]
    ran = subprocess.run(command, env=bare.env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("usage: ./setup.sh")


@pytest.mark.slow
def test_ctrl_c_while_the_venv_is_made_is_repaired_by_the_next_run(tmp_path: Path) -> None:
    repository = copy_repository(tmp_path / "clone")
    person = Newcomer(tmp_path / "home", repository, None)
    make = (
        "import os; from systemd_llm_switch.setup.places import Places\n"
        "from systemd_llm_switch.setup.python_env import provide_venv\n"
        "provide_venv(Places.of(os.environ))"
    )
    env = person.env | {"PYTHONPATH": str(repository / "src")}
    command = ["env", "--default-signal=INT", "python3", "-c", make]  # a shell's background job ignores SIGINT
    first = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    pip = "lib/python3*/site-packages/pip"
    wait_for(lambda: list((repository / ".venv").glob(pip)), 120)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait() != 0
    ran = subprocess.run(["python3", "-c", make], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "making .venv" in ran.stdout
    assert subprocess.run([repository / ".venv/bin/python", "-c", "import pip, yaml"], check=False).returncode == 0
    assert not (repository / ".venv/.unfinished").exists()


@pytest.mark.parametrize("where", ["data", "clone"])
def test_a_second_set_up_says_who_is_at_work(settled: Newcomer, where: str) -> None:
    folder = settled.rendered.parent if where == "data" else settled.repository
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused = [settled.setup(*options) for options in (["--yes"], ["--uninstall"])]
        checked = settled.setup("--check")
    finally:
        os.close(descriptor)
    for ran in refused:
        assert ran.returncode == 1
        assert f"another set-up works in {'~/' if where == 'data' else '/'}" in ran.stderr
        assert f"(process {os.getpid()}: " in ran.stderr
    assert "another set-up" not in checked.stderr


def test_an_answer_that_does_not_work_never_replaces_one_that_does(settled: Newcomer) -> None:
    before = tree_sums(settled.rendered)
    ran = settled.setup("--yes", LLAMA_SERVER_PATH="/bin/true", MODELS_DIR="/no/such/folder")
    assert ran.returncode == 0
    assert "! /bin/true is not a llama-server" in ran.stdout
    assert "! the folder /no/such/folder does not exist" in ran.stdout
    assert tree_sums(settled.rendered) == before


@pytest.mark.parametrize("wrong", ["/no/such/llama-server", "/bin/true"])
def test_a_first_run_without_a_llama_server_that_works_writes_nothing(
    newcomer: Newcomer, tmp_path: Path, wrong: str
) -> None:
    person = Newcomer(tmp_path / "home", copy_repository(tmp_path / "clone"), newcomer.manager)
    before = tree_sums(tmp_path)
    person.home.mkdir()
    ran = person.setup("--yes", LLAMA_SERVER_PATH=wrong)
    assert ran.returncode == 1
    assert wrong in ran.stderr
    assert ran.stderr.endswith(". Correct LLAMA_SERVER_PATH and run ./setup.sh again\n")
    assert ran.stderr.count("\n") == 1
    assert tree_sums(tmp_path) == before
    assert not (person.repository / ".venv").exists()
    assert list(person.home.iterdir()) == []
    assert ".venv" not in person.setup("--uninstall").stdout


def test_the_check_names_a_hold_and_how_to_end_it(settled: Newcomer) -> None:
    url = f"http://127.0.0.1:{port_of(settled)}"
    get_json(f"{url}/api/hold", {"minutes": 60})
    try:
        ran = settled.setup("--check")
    finally:
        get_json(f"{url}/api/release", {})
    assert re.search(r"! the VRAM is on hold until \d\d:\d\d; requests get 503 on_hold\n", ran.stdout)
    assert "llm-switch release\n" in ran.stdout


@pytest.fixture
def own_unit(settled: Newcomer) -> Iterator[Path]:
    """A unit of the person's own as the only model; its file is written by the test."""
    text, unit = settled.config.read_text(), settled.linked / "mine.service"
    settled.config.write_text(f"{text.partition('models:')[0]}models:\n  mine: {unit.name}\n")
    yield unit
    settled.config.write_text(text)
    settled.systemctl("stop", unit.name)
    settled.systemctl("reset-failed", unit.name)
    unit.unlink()


def test_a_stop_that_took_too_long_is_not_a_failed_run(settled: Newcomer, own_unit: Path) -> None:
    """systemd says `Result: timeout` of a unit that had to be killed."""
    script = 'trap "" TERM; echo up; while :; do sleep 0.1; done'
    own_unit.write_text(f"[Service]\nType=exec\nTimeoutStopSec=100ms\nExecStart=/bin/sh -c '{script}'\n")
    settled.systemctl("daemon-reload")
    settled.systemctl("start", own_unit.name)
    journal = ["journalctl", "--user-unit", own_unit.name, "-o", "cat", "-q"]
    wait_for(lambda: b"up" in subprocess.run(journal, env=settled.env, capture_output=True, check=False).stdout)
    settled.systemctl("stop", own_unit.name)
    assert settled.systemctl("show", "-p", "Result", "--value", own_unit.name) == "timeout"
    assert "the last run" not in settled.setup("--check").stdout


def test_a_start_that_took_too_long_is_a_failed_run(settled: Newcomer, own_unit: Path) -> None:
    own_unit.write_text("[Service]\nType=notify\nTimeoutStartSec=100ms\nExecStart=/bin/sleep 60\n")
    settled.systemctl("daemon-reload")
    settled.systemctl("start", own_unit.name)
    assert settled.systemctl("show", "-p", "Result", "--value", own_unit.name) == "timeout"
    assert "the last run of mine.service failed (Result: timeout)" in settled.setup("--check").stdout


@pytest.mark.parametrize("written", ["--port 3999", "--port=3999", ""])
def test_the_check_sees_that_the_proxy_asks_another_port(settled: Newcomer, own_unit: Path, written: str) -> None:
    server = settled.answers["LLAMA_SERVER_PATH"].replace("%", "%%")
    own_unit.write_text(f'[Service]\nExecStart="{server}" {written}\n')
    settled.systemctl("daemon-reload")
    shown = settled.setup("--check").stdout
    assert re.search(
        rf"! mine: the proxy asks http://127.0.0.1:\d+, but mine.service listens on port "
        rf"{written[-4:] or 8080}\n",
        shown,
    )
    assert re.search(r"set --port \d+ in the unit, or llama_url in ~/.config", shown)


def test_the_check_reads_the_port_of_a_drop_in(settled: Newcomer, own_unit: Path) -> None:
    server = settled.answers["LLAMA_SERVER_PATH"].replace("%", "%%")
    backend = re.search(r"llama_url: \S+:(\d+)", settled.config.read_text())
    assert backend
    own_unit.write_text(f'[Service]\nExecStart="{server}" --port 3999\n')
    drop_in = own_unit.with_name("mine.service.d") / "port.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f'[Service]\nExecStart=\nExecStart="{server}" --port {backend[1]}\n')
    settled.systemctl("daemon-reload")
    shown = settled.setup("--check").stdout
    shutil.rmtree(drop_in.parent)
    assert "listens on port" not in shown


@pytest.mark.parametrize(("status", "is_active"), [(404, True), (200, True), (200, False)])
def test_another_program_on_the_proxys_port_is_named_without_its_page(
    settled: Newcomer, status: int, is_active: bool
) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, explain="<marquee>" * 1000)

        def log_message(self, *arguments: object) -> None:
            pass

    text = settled.config.read_text()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        settled.config.write_text(re.sub(r"^  port: \d+", f"  port: {other.server_port}", text, flags=re.MULTILINE))
        if not is_active:
            settled.systemctl("stop", "llm-switch.service")
        shown = settled.setup("--check").stdout
        command = [str(settled.home / ".local/bin/llm-switch"), "status"]
        status_said = subprocess.run(command, env=settled.env, capture_output=True, text=True, check=False).stderr
        other.shutdown()
    settled.config.write_text(text)
    assert f"! what answers at http://127.0.0.1:{other.server_port} is not this proxy, but another program\n" in shown
    assert f"      ss -ltnp 'sport = :{other.server_port}' " in shown
    assert f"`ss -ltnp 'sport = :{other.server_port}'` shows which program it is" in status_said
    for words in ("marquee", "llm-switch.service runs", "systemctl --user start", "systemctl --user restart"):
        assert words not in shown


def test_the_check_before_any_set_up_says_what_to_run(bare: Newcomer) -> None:
    ran = bare.setup("--check")
    assert ran.returncode == 1
    assert ran.stderr == "✗ nothing is set up here yet: run ./setup.sh\n"
    assert ran.stdout == ""


def test_the_check_says_that_a_set_up_broke_off(settled: Newcomer) -> None:
    """Here it could not start the proxy, and one of its units is missing."""
    text = settled.config.read_text()
    settled.config.write_text(text.replace("  port:", "  prot:"))
    broken = settled.setup("--yes")
    settled.config.write_text(text)
    (settled.linked / "bge-m3.service").unlink()
    settled.systemctl("daemon-reload")
    shown = settled.setup("--check")
    again = settled.setup("--yes")
    assert (broken.returncode, shown.returncode, again.returncode) == (1, 1, 0)
    assert "! the set-up did not finish; run it again\n      ./setup.sh\n" in shown.stdout
    assert "! bge-m3: the unit bge-m3.service does not exist\n      ./setup.sh\n" in shown.stdout
    assert "did not finish" not in again.stdout


def test_without_a_network_pip_fails_in_one_sentence(newcomer: Newcomer, tmp_path: Path) -> None:
    person = Newcomer(newcomer.home, copy_repository(tmp_path / "clone"), newcomer.manager, dict(newcomer.answers))
    lend_venv(person.repository, is_whole=False)
    person.answers |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_CACHE_DIR": str(tmp_path / "cache")}
    ran = person.setup("--yes", PIP_INDEX_URL=f"http://127.0.0.1:{free_port()}/simple")
    assert ran.returncode == 1
    assert ran.stderr.startswith("✗ pip install failed: PyPI cannot be reached. Check the network")
    assert ran.stderr.count("\n") == 1


def test_a_full_disk_is_one_sentence(newcomer: Newcomer, tmp_path: Path) -> None:
    repository = copy_repository(tmp_path / "clone")
    (repository / ".venv").mkdir()
    person = Newcomer(newcomer.home, repository, newcomer.manager, dict(newcomer.answers))
    script = 'mount -t tmpfs -o size=8m none "$1/.venv" && exec "$1/setup.sh" --yes'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(repository)]
    ran = subprocess.run(command, env=person.env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "the disk is full" in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.systemd
def test_a_plain_user_is_not_sent_to_a_demo_that_needs_root() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # where anybody gets: the tests' own TMPDIR is root's
        Path(folder).chmod(0o777)
        env = {"HOME": folder, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        python = next(path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists())
        run = [*drop, python, "-P", "-m", "systemd_llm_switch.setup", "--yes"]
        env["PYTHONPATH"] = str(ROOT / "src")
        ran = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "no systemd user manager answers" in ran.stderr or "missing: " in ran.stderr
    assert "--demo" not in ran.stderr


@pytest.mark.systemd
@pytest.mark.parametrize("ports", [{}, {"DEMO_PORT": "many"}])
def test_a_demo_that_cannot_run_is_refused_before_anything_is_made(ports: dict[str, str]) -> None:
    """For a plain user without a user manager, or with a port that is not a number."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        repository = copy_repository(Path(folder) / "clone")
        repository.chmod(0o777)
        home = Path(folder) / "home"
        home.mkdir()
        home.chmod(0o777)
        env = {"HOME": str(home), "PATH": "/usr/bin:/bin", **ports}
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*drop, str(repository / "setup.sh"), "--demo"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        made = [*home.iterdir(), *repository.glob(".venv")]
    assert ran.returncode == 1
    assert ("must be numbers" if ports else "only root can start a private one") in ran.stderr
    assert made == []


def test_keys_that_others_may_read_are_named(settled: Newcomer) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a closed folder above it would protect the keys
        Path(folder).chmod(0o755)
        config = Path(folder) / "config.yaml"
        config.write_text(settled.config.read_text().replace("server:\n", "server:\n  api_keys: [hush-hush]\n"))
        config.chmod(0o644)
        open_to_all = settled.setup("--check", LLM_SWITCH_CONFIG=config).stdout
        config.chmod(0o600)
        closed = settled.setup("--check", LLM_SWITCH_CONFIG=config).stdout
    what = f"! config: {config} holds keys, and every user of this machine may read it; run `chmod 600 {config}`\n"
    assert what in open_to_all
    assert what not in closed


def test_the_command_is_linked_and_runs(settled: Newcomer, tmp_path: Path) -> None:
    """Also where a file of the current folder has a library's name."""
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")
    command = [str(settled.home / ".local/bin/llm-switch"), "--check"]
    ran = subprocess.run(command, env=settled.env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith(f"{settled.config}: ok; models: ")


def test_a_command_of_ones_own_stays(settled: Newcomer) -> None:
    link = settled.home / ".local/bin/llm-switch"
    settled.setup("--uninstall")
    assert not link.is_symlink()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.write_text("#!/bin/sh\necho mine\n")
    ran = settled.setup("--yes")
    assert "kept your own ~/.local/bin/llm-switch" in ran.stdout
    settled.setup("--uninstall")
    assert link.read_text() == "#!/bin/sh\necho mine\n"
    link.unlink()


def test_the_man_page_and_the_completions_come_and_go_with_the_command(settled: Newcomer) -> None:
    data = settled.home / ".local/share"
    files = [
        data / "man/man1/llm-switch.1",
        data / "bash-completion/completions/llm-switch",
        data / "zsh/site-functions/_llm-switch",
        data / "fish/vendor_completions.d/llm-switch.fish",
    ]
    assert [path for path in files if not path.exists()] == []
    files[1].write_text("# mine\n")
    ran = settled.setup("--uninstall")
    assert "bash-completion/completions/llm-switch" in ran.stdout
    assert [path for path in files if path.exists()] == [files[1]]
    files[1].unlink()
