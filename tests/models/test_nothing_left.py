"""Whatever fails or is interrupted while a model is added, nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.conftest import ONE_THREAD, Person
from models.made import layers, make, model, split
from support.stack import descriptors_of, freeze, wait_for
from systemd_llm_switch.command.proxy_client import Refused
from systemd_llm_switch.config.file import PACKAGED
from systemd_llm_switch.models import adding, planning
from systemd_llm_switch.models.flags import Wishes
from systemd_llm_switch.models.undoing import put_back
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.systemctl import Systemctl


def _nothing_is_left(person: Person, before: dict[str, str]) -> None:
    assert person.files() == before
    assert person.models() == ["mine"]
    assert "small.service" not in person.stack.systemctl("list-units", "--all", "--no-legend")


def _broken(kind: str, folder: Path, file: Path) -> Path:
    path = folder / "m.gguf"
    if kind == "0 bytes":
        path.touch()
    elif kind == "half":
        path.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "text":
        path.write_text("not a model\n" * 1000)
    elif kind == "a part is missing":
        first, second = split(file, folder, 2)
        second.unlink()
        return first
    return path


@pytest.mark.parametrize("kind", ["0 bytes", "half", "text", "a part is missing", "not there"])
def test_a_broken_file(person: Person, model_file: Path, tmp_path: Path, kind: str) -> None:
    before = person.files()
    ran = person.run("add", "small", str(_broken(kind, tmp_path, model_file)))
    assert ran.returncode == 1
    assert "gguf" in ran.stderr
    assert "Traceback" not in ran.stderr
    _nothing_is_left(person, before)


def test_a_file_that_llama_server_refuses(person: Person, tmp_path: Path) -> None:
    """It looks sound from outside; the message is that of the failed start."""
    before = person.files()
    ran = person.run("add", "small", str(make(tmp_path / "m.gguf", model("no-such"), layers(2, 256))), *ONE_THREAD)
    assert ran.returncode == 1
    assert "small.service" in ran.stderr
    _nothing_is_left(person, before)


@pytest.mark.parametrize("name", ["mine", "", "a b", "a,b", "x" * 101, "llm-switch"])
def test_a_name_that_cannot_be_taken(person: Person, model_file: Path, name: str) -> None:
    before = person.files()
    ran = person.run("add", name, str(model_file), "--no-try")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    _nothing_is_left(person, before)


def test_a_unit_of_somebody_else(person: Person, model_file: Path) -> None:
    person.stack.unit("theirs", "/bin/true")
    before = person.files()
    ran = person.run("add", f"{person.stack.prefix}-theirs", str(model_file), "--no-try")
    assert ran.returncode == 1
    assert "which `add` did not make" in ran.stderr
    _nothing_is_left(person, before)


SILENT = """\
#!{python}
import os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if "--help" in sys.argv:
    os.execv("{server}", ["{server}", "--help"])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{{}}")
    def do_POST(self):
        threading.Event().wait()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def silent(person: Person, tmp_path: Path) -> str:
    """A llama-server that loads and never answers: so each interrupt comes before the end."""
    path = tmp_path / "llama-server"
    path.write_text(SILENT.format(python=sys.executable, server=person.env["LLAMA_SERVER_PATH"]))
    path.chmod(0o755)
    person.env["LLAMA_SERVER_PATH"] = str(path)
    return str(path)


@pytest.mark.parametrize("line", ["for chat", "unit ~", "entry in", "loaded in"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_after_each_step(person: Person, model_file: Path, silent: str, line: str, number: int) -> None:
    before = person.files()
    code, said = person.interrupt(line, "add", "small", str(model_file), number=number)
    assert code in (1, -number), said  # a signal that comes before anything is changed may simply end it
    assert "Traceback" not in said
    _nothing_is_left(person, before)


def test_a_config_that_a_running_proxy_may_have_read_stays(person: Person, model_file: Path) -> None:
    """The first model brings a file of the person's own. Where it is tried in vain, the file has no models of theirs
    again; if it vanished, a proxy that reads it already would report it as broken."""
    person.config.unlink()
    places, systemd = Places.of(person.env), Systemctl(person.env)
    plan = planning.plan("small", model_file, Wishes(512), PACKAGED, places, person.env, systemd)

    def try_in_vain() -> None:
        assert "small" in person.config.read_text()
        raise Refused("no answer")

    with pytest.raises(Refused):
        adding.add(plan, places, systemd, try_in_vain)
    assert person.config.read_text() == PACKAGED.read_text()


def test_an_interrupt_says_if_the_model_is_there_already(person: Person, model_file: Path) -> None:
    """It comes before anything is looked at: the proxy, which is asked first, does not answer."""
    freeze(person.proxy.process.pid)
    words = (sys.executable, "-m", "systemd_llm_switch", "add", "mine", str(model_file))
    with subprocess.Popen(words, env=person.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for(lambda: "socket:[]" in descriptors_of(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert b"interrupted; mine is added already" in process.stdout.read()


def test_a_killed_add_is_cleared_by_the_next(person: Person, model_file: Path) -> None:
    """Nothing can be undone then; but the unit that is left does not stand in the way."""
    words = ("add", "small", str(model_file), "--ctx", "512", "--no-try")
    person.interrupt("unit ~", *words, number=signal.SIGKILL)
    text = person.config.read_text().replace('  small: "small.service"\n', "")
    person.config.write_text(text)  # where the signal came a moment later
    ran = person.run(*words)
    assert ran.returncode == 0, ran.stderr
    assert person.run("remove", "small").returncode == 0


def test_a_config_that_is_edited_meanwhile_keeps_the_edit(person: Person, tmp_path: Path) -> None:
    """Somebody adds a comment while the model is tried."""
    file = make(tmp_path / "m.gguf", model("no-such"), layers(2, 256))
    hook = tmp_path / "llama-server"
    hook.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && exec {person.env["LLAMA_SERVER_PATH"]} --help\n'
        f"echo '# an edit' >> '{person.config}'\nexit 1\n"
    )
    hook.chmod(0o755)
    before = person.config.read_text()
    ran = person.run("add", "small", str(file), LLAMA_SERVER_PATH=str(hook))
    assert ran.returncode == 1
    assert person.config.read_text() in (before, before + "# an edit\n" * person.config.read_text().count("# an edit"))
    assert person.models() == ["mine"]


@pytest.fixture
def full_disk(person: Person) -> Iterator[Path]:
    """The folder of the set-up's own data, on a disk of 64 kB without a free block."""
    folder = person.home / ".local/share/systemd-llm-switch"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.parametrize("free", [0, 4096, 8192, 12288])
def test_a_full_disk(person: Person, full_disk: Path, model_file: Path, free: int) -> None:
    filler = full_disk / "filler"
    filler.write_bytes(bytes(65536 - free))
    before = person.files()
    ran = person.run("add", "small", str(model_file), "--no-try")
    if ran.returncode == 0:  # so much was enough
        assert person.run("remove", "small").returncode == 0
    else:
        assert "No space left" in ran.stderr
        assert "Traceback" not in ran.stderr
    _nothing_is_left(person, before)


def test_an_earlier_text_is_put_back_without_a_free_block(full_disk: Path) -> None:
    file = full_disk / "file"
    file.write_text("a longer text")
    (full_disk / "filler").write_bytes(bytes(65536 - 4096))
    put_back(file, "short")
    assert file.read_text() == "short"


def test_a_full_disk_under_the_config(person: Person, model_file: Path) -> None:
    folder = person.config.parent
    text = person.config.read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], check=True)
    try:
        person.config.write_bytes(text)
        (folder / "filler").write_bytes(bytes(3 * 4096))
        before = person.files()
        ran = person.run("add", "small", str(model_file), "--no-try")
        assert ran.returncode == 1
        assert "No space left" in ran.stderr
        assert "could not undo" not in ran.stdout + ran.stderr
        _nothing_is_left(person, before)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
