"""A newcomer who sets the project up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.newcomer import Newcomer, copy_repository, lend_venv
from support.stack import free_port
from systemd_llm_switch.setup.user_manager import UserManager


@pytest.fixture(scope="module")
def has_venv() -> bool:
    """Whether `.venv` is there already. A module whose first run must make it overrides this."""
    return True


@pytest.fixture(scope="module")
def newcomer(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, model_file: Path, has_venv: bool
) -> Iterator[Newcomer]:
    """Somebody with a llama-server, one chat model, and paths with blanks, dollars, percents and quotes."""
    folder = tmp_path_factory.mktemp("new")
    repository = copy_repository(folder / "my $repo 100%")
    if has_venv:
        lend_venv(repository)
    server = folder / "llama $HOME 5%"
    server.symlink_to(llama_server.parent)
    models = folder / """models "it's" $5 100% \\n"""
    models.mkdir()
    (models / "Qwen3-Coder-30B-A3B-Instruct-UD-Q8_K_XL.gguf").symlink_to(model_file)
    manager = UserManager.start(folder / "home")
    answers = {"LLAMA_SERVER_PATH": str(server / "llama-server"), "MODELS_DIR": str(models)}
    person = Newcomer(folder / "home", repository, manager, answers)
    _use_free_ports(person)
    yield person
    manager.stop()


def _use_free_ports(person: Newcomer) -> None:
    """The proxy's by the user's config, the models' in the (copied) unit files: other tests run side by side."""
    backend = free_port()
    text = (person.repository / "src/systemd_llm_switch/config.yaml").read_text()
    person.config.parent.mkdir(parents=True)
    ports = f"server:\n  port: {free_port()}\n  llama_url: http://127.0.0.1:{backend}\n"
    person.config.write_text(text.replace("server:\n", ports))
    for unit in (person.repository / "deploy/systemd").glob("*.service"):
        unit.write_text(unit.read_text().replace("--port 3004", f"--port {backend} --threads 1"))


@pytest.fixture
def settled(newcomer: Newcomer) -> Newcomer:
    """After a successful run."""
    newcomer.settle()
    return newcomer
