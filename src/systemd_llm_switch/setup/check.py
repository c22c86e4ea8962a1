"""Owns the check at the end: does what was set up hold together? Each finding says what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from systemd_llm_switch.setup.llama_server import is_executable
from systemd_llm_switch.setup.model_files import missing_parts
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.running_proxy import UNIT, ProxyConfig, ProxyStatus
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import exec_start, model_in, wanted_model

_LONGEST_ERROR = 400  # letters; the journal has the rest


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    what: str
    mend: str
    is_download: bool = False


def findings(config: ProxyConfig, systemd: Systemctl, places: Places) -> list[Finding]:
    """Everything that would keep a configured model from running."""
    found = [Finding(f"config: {problem}", f"edit {places.short(config.path)}") for problem in config.problems]
    last_errors: Mapping[str, str] = {}
    if config.models:
        of_proxy, last_errors = _ask_proxy(config, systemd, places)
        found.extend(of_proxy)
    for model, unit in config.models.items():
        missing = list(_of_unit(model, unit, config, systemd, places))
        # What is missing is reason enough for a start that failed.
        found.extend(missing or _of_last_start(model, unit, last_errors.get(model, ""), systemd))
    found.extend(_of_gpu())
    return list(dict.fromkeys(found))


def _ask_proxy(config: ProxyConfig, systemd: Systemctl, places: Places) -> tuple[list[Finding], Mapping[str, str]]:
    """What is wrong with the proxy, and what it knows of its models: why each could not be loaded, if it could not."""
    if not systemd.is_active(UNIT):
        return [Finding(f"{UNIT} does not run", f"systemctl --user start {UNIT}")], {}
    try:
        told = ProxyStatus.ask(config)
    except SetupError as error:
        return [Finding(f"{UNIT} runs, but {error}", f"systemctl --user restart {UNIT}")], {}
    found = []
    if told.config != str(config.path):
        what = f"the running proxy reads {places.short(told.config)}, this check {places.short(config.path)}"
        found.append(Finding(what, f"LLM_SWITCH_CONFIG={quote(told.config)} ./setup.sh --check"))
    if told.config_error:
        what = f"the running proxy goes on with its last good config: {told.config_error}"
        found.append(Finding(what, f"edit {places.short(told.config)}"))
    return found, told.last_errors


def _of_last_start(model: str, unit: str, last_error: str, systemd: Systemctl) -> Iterator[Finding]:
    """The proxy's own words where it tried, else systemd's."""
    result = systemd.show(unit, "Result")
    see = f"journalctl --user -u {unit} -n 30"
    if last_error:
        yield Finding(f"{model}: the last load failed: {_shortened(last_error)}", see)
    elif result not in ("", "success"):
        yield Finding(f"{model}: the last run of {unit} failed (Result: {result})", see)


def _of_unit(model: str, unit: str, config: ProxyConfig, systemd: Systemctl, places: Places) -> Iterator[Finding]:
    fragment = Path(systemd.show(unit, "FragmentPath") or "/nonexistent")
    if not fragment.is_file():
        is_demos = (places.demo_sources / unit).exists()
        put_there = f"put a {unit} into {places.short(places.linked)} and run: systemctl --user daemon-reload"
        take_out = f"take it out of {places.short(config.path)}, or bring the demo back: ./setup.sh --demo"
        yield Finding(f"{model}: the unit {unit} does not exist", take_out if is_demos else put_there)
        return
    text = fragment.read_text()
    words = exec_start(text)
    program = _path(words[0], places) if words else None
    if program and program.name == "llama-server" and not is_executable(program):
        yield Finding(
            f"no llama-server at {places.short(program)}",
            "run ./setup.sh again and name another, or build it there",
        )
    yield from _of_model_file(model, text, program, places)


def _of_model_file(model: str, text: str, program: Path | None, places: Places) -> Iterator[Finding]:
    path = model_in(text, places.home)
    if path is None or not (missing := missing_parts(path)):
        return
    what = f"{model}: no model file {places.short(missing[0])}"
    wanted = wanted_model(text)
    if wanted and program:
        yield Finding(what, f"{quote(str(program))} -hf {wanted.download_name}", is_download=True)
    else:
        yield Finding(what, "put it there, or run ./setup.sh again and name its folder")


def _of_gpu() -> Iterator[Finding]:
    """The driver makes this device with a setuid helper, which a hardened unit cannot run."""
    if Path("/dev/nvidiactl").exists() and not Path("/dev/nvidia-uvm").exists():
        yield Finding("the NVIDIA driver is loaded without /dev/nvidia-uvm", "sudo nvidia-modprobe -u -c=0")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} …"


def _path(word: str, places: Places) -> Path:
    return Path(word.replace("%h", str(places.home)).replace("%%", "%"))
