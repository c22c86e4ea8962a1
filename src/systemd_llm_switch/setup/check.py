"""The check of what was set up. Each finding says what fixes it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from systemd_llm_switch.contexts.unit import SLOT_VARIABLE, Command
from systemd_llm_switch.setup import command_link, server_flags
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.llama_server import is_executable
from systemd_llm_switch.setup.model_files import missing_parts
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.running_proxy import UNIT, OtherProgram, ProxyConfig, ProxyStatus
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import exec_start, expand, model_in, wanted_model

_LONGEST_ERROR = 400  # characters; the journal has the rest


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, and the command that fixes it."""

    what: str
    fix: str
    is_download: bool = False


@dataclass(frozen=True, slots=True)
class _Model:
    """A model of the config, and its unit as systemd reads it: the file, then its drop-ins."""

    id: str
    unit: str
    url: str
    text: str

    @property
    def words(self) -> list[str]:
        return exec_start(self.text)

    def program(self, places: Places) -> Path | None:
        return Path(expand(self.words[0], places.home)) if self.words else None


def of_ledger(ledger: Ledger, places: Places) -> list[Finding]:
    """Whether the last set-up broke off."""
    if not ledger.unfinished:
        return []
    step, name = ("demo", "demo") if ledger.unfinished == "demo" else ("setup", "set-up")
    return [Finding(f"the {name} did not finish; run it again", places.how_to(step))]


def findings(config: ProxyConfig, systemd: Systemctl, places: Places) -> list[Finding]:
    """Everything that would keep a configured model from running."""
    found = [Finding(f"config: {problem}", f"edit {places.short(config.path)}") for problem in config.problems]
    last_errors: Mapping[str, str] = {}
    if config.models:
        of_proxy, last_errors = _ask_proxy(config, systemd, places)
        found.extend(of_proxy)
    for name, unit in config.models.items():
        missing = list(_of_unit(name, unit, config, systemd, places))
        # If something is missing, that explains a failed start.
        found.extend(missing or _of_last_start(name, unit, last_errors.get(name, ""), systemd))
    found.extend(Finding(f"config: {warning}", "") for warning in config.warnings)
    found.extend(_of_gpu())
    return list(dict.fromkeys(found))


def advice(config: ProxyConfig, systemd: Systemctl, places: Places) -> list[Finding]:
    """What keeps no model from running, but costs its users time: contexts that do not survive a switch."""
    found = []
    for name in config.keep:
        unit = config.models[name]
        model = _Model(name, unit, config.urls.get(name, ""), _text(unit, systemd))
        if not any("llama-server" in word for word in model.words):
            continue
        words = [expand(word, places.home).replace("%C", str(places.home / ".cache")) for word in model.words]
        command = Command.of(words)
        problem = command.problem
        if problem is not None and command.has_conversations and SLOT_VARIABLE not in model.text:
            what = f"{name}: its conversations are read again after each switch: {problem}"
            found.append(Finding(what, f"systemctl --user edit --full {unit}"))
    return found


def _text(unit: str, systemd: Systemctl) -> str:
    """A unit as systemd reads it: its file, then its drop-ins. Empty if there is none."""
    files = (systemd.show(unit, "FragmentPath"), *systemd.show(unit, "DropInPaths").split())
    return "\n".join(Path(file).read_text(errors="replace") for file in files if file and Path(file).is_file())


def _ask_proxy(config: ProxyConfig, systemd: Systemctl, places: Places) -> tuple[list[Finding], Mapping[str, str]]:
    """What is wrong with the proxy, and the last error of each model that failed to load."""
    is_active = systemd.is_active(UNIT)
    is_stopped = Finding(f"{UNIT} does not run", f"systemctl --user start {UNIT}")
    try:
        status = ProxyStatus.ask(config)
    except OtherProgram as error:
        return [Finding(str(error), error.fix)], {}
    except SetupError as error:
        is_deaf = Finding(f"{UNIT} runs, but {error}", f"systemctl --user restart {UNIT}")
        return [is_deaf if is_active else is_stopped], {}
    if not is_active:
        return [is_stopped], {}
    found = []
    if status.config != str(config.path):
        what = f"the running proxy reads {places.short(status.config)}, this check {places.short(config.path)}"
        found.append(Finding(what, f"LLM_SWITCH_CONFIG={quote(status.config)} {places.how_to('check')}"))
    if status.config_error:
        what = f"the running proxy goes on with its last good config: {status.config_error}"
        found.append(Finding(what, f"edit {places.short(status.config)}"))
    if status.is_on_hold:
        end = time.strftime(" until %H:%M", time.localtime(status.hold_until)) if status.hold_until else ""
        release = f"{command_link.typed(places, os.environ)} release"
        found.append(Finding(f"the VRAM is on hold{end}; requests get 503 on_hold", release))
    return found, status.last_errors


def _of_last_start(model: str, unit: str, last_error: str, systemd: Systemctl) -> Iterator[Finding]:
    """The proxy's message if it tried to load the model, else systemd's result."""
    see = f"journalctl --user -u {unit} -n 30"
    if last_error:
        yield Finding(f"{model}: the last load failed: {_shortened(last_error)}", see)
        return
    result = systemd.show(unit, "Result")
    if result not in ("", "success") and not (result == "timeout" and systemd.was_stopped(unit)):
        yield Finding(f"{model}: the last run of {unit} failed (Result: {result})", see)


def _of_unit(name: str, unit: str, config: ProxyConfig, systemd: Systemctl, places: Places) -> Iterator[Finding]:
    fragment = Path(systemd.show(unit, "FragmentPath") or "/nonexistent")
    if not fragment.is_file():
        yield Finding(f"{name}: the unit {unit} does not exist", _bring(unit, config, places))
        return
    model = _Model(name, unit, config.urls.get(name, ""), _text(unit, systemd))
    program = model.program(places)
    if program and program.name == "llama-server":
        if not is_executable(program):
            fix = f"run {places.how_to()} again and name another, or build it there"
            yield Finding(f"no llama-server at {places.short(program)}", fix)
        else:
            yield from _of_flags(model, program)
        yield from _of_port(model, config, places)
    yield from _of_model_file(model, program, places)


def _bring(unit: str, config: ProxyConfig, places: Places) -> str:
    """How a unit that is missing gets there."""
    if (places.unit_sources / unit).exists():
        return places.how_to()
    if (places.demo_sources / unit).exists():
        return f"take it out of {places.short(config.path)}, or bring the demo back: {places.how_to('demo')}"
    return f"put a {unit} into {places.short(places.linked)} and run: systemctl --user daemon-reload"


def _of_flags(model: _Model, program: Path) -> Iterator[Finding]:
    """Flags that this build does not know: it would end at once."""
    try:
        known = server_flags.ask(program)
    except SetupError:  # it does not say what it knows
        return
    for flag in known.unknown(model.words[1:]):
        instead = known.instead_of(flag)
        what = f"{model.id}: {model.unit} has {flag}, which this llama-server does not know"
        do = f"write {instead} instead" if instead else "take it out"
        yield Finding(what, f"{do}: systemctl --user edit --full {model.unit}")


def _of_port(model: _Model, config: ProxyConfig, places: Places) -> Iterator[Finding]:
    """The model listens on another port than the proxy asks, so a request would wait until `health_timeout`."""
    listens, asked = Command.of(model.words).port, urlsplit(model.url).port
    if asked is not None and listens is not None and listens != asked and "LLAMA_ARG_PORT" not in model.text:
        what = f"{model.id}: the proxy asks {model.url}, but {model.unit} listens on port {listens}"
        yield Finding(what, f"set --port {asked} in the unit, or llama_url in {places.short(config.path)}")


def _of_model_file(model: _Model, program: Path | None, places: Places) -> Iterator[Finding]:
    path = model_in(model.text, places.home)
    if path is None or not (missing := missing_parts(path)):
        return
    what = f"{model.id}: no model file {places.short(missing[0])}"
    wanted = wanted_model(model.text)
    if wanted and program:
        what += f" ({wanted.size})" if wanted.size else ""
        yield Finding(what, f"{quote(str(program))} -hf {wanted.download_name}", is_download=True)
    elif model.unit in Ledger.load(places).added_units:
        yield Finding(what, f"put it back, or: llm-switch remove {quote(model.id)}, and add it anew where it is now")
    else:
        yield Finding(what, f"put it there, or run {places.how_to()} again and name its folder")


def _of_gpu() -> Iterator[Finding]:
    """The driver makes this device with a setuid helper, which a hardened unit cannot run."""
    if Path("/dev/nvidiactl").exists() and not Path("/dev/nvidia-uvm").exists():
        yield Finding("the NVIDIA driver is loaded without /dev/nvidia-uvm", "sudo nvidia-modprobe -u -c=0")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} …"
