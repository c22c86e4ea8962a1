"""The models in a config of llama-swap. Its macros are replaced within bounds, and nothing in it is run.

The format: https://github.com/mostlygeek/llama-swap/blob/main/docs/config.example.yaml
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from systemd_llm_switch.config.document import UnreadableFile, parse_yaml
from systemd_llm_switch.config.limits import MOST_MODELS
from systemd_llm_switch.models.foreign import (
    SECRET,
    SECRET_VALUE,
    CannotTake,
    Foreign,
    Found,
    NotTaken,
    from_flags,
    read_foreign,
    usable_environment,
    without_counterpart,
)
from systemd_llm_switch.quoting import printable, quoted
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.server_flags import ServerFlags

_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]{1,200})\}")
_MOST_EXPANDED = 64_000  # characters of one command
_MOST_DEPTH = 20  # of macros in macros
_CONTAINERS = ("docker", "podman", "nerdctl")
_TAKEN = frozenset(("models", "macros", "globalTTL"))
# Keys that need nothing here: what they arrange is arranged by systemd and the journal.
_NEEDLESS = frozenset(("startPort", "logLevel", "logTimeFormat", "logToStdout", "logRequests", "metricsMaxInMemory"))
_ELSEWHERE = {
    "healthCheckTimeout": "write `server.health_timeout`",
    "apiKeys": "write `server.api_keys`",
    "includeAliasesInList": "write `server.list_aliases: true`",
    "hooks": "write `server.preload` for the models to load at the start",
    "groups": "give each model its `vram`: what fits on the card together stays loaded together",
    "matrix": "give each model its `vram`: what fits on the card together stays loaded together",
    "routing": "give each model its `vram`: what fits on the card together stays loaded together",
    "peers": "models of other machines cannot be served",
}
_MODEL_TAKEN = frozenset(("cmd", "macros", "env", "aliases", "ttl", "filters", "proxy", "checkEndpoint"))


def read(path: Path, known: ServerFlags, environ: Mapping[str, str]) -> Found:
    """Everything in the file, one by one: what can be taken over, and what cannot.

    Raises:
        SetupError: the file as a whole cannot be read.
    """
    name = printable(str(path))
    try:
        raw = parse_yaml(read_foreign(path), name)
    except UnreadableFile as error:
        raise SetupError(str(error)) from error
    models = raw.get("models") if isinstance(raw, dict) else None
    if not isinstance(models, dict) or not models:
        raise SetupError(f"{name} has no `models:`, so it is not a config of llama-swap")
    if len(models) > MOST_MODELS:
        raise SetupError(f"{name} has more than {MOST_MODELS} models")
    found = tuple(_model_or_reason(str(key), value, raw, known, environ) for key, value in models.items())
    return Found(found, tuple(_lost_of_file(raw)))


def _lost_of_file(raw: Mapping[object, Any]) -> list[str]:
    keys = [str(key) for key, value in raw.items() if value and key not in _TAKEN | _NEEDLESS]
    elsewhere = [f"{key}: {_ELSEWHERE[key]}" for key in keys if key in _ELSEWHERE]
    return elsewhere + without_counterpart([key for key in keys if key not in _ELSEWHERE])


def _model_or_reason(
    name: str, raw: object, whole: Mapping[object, Any], known: ServerFlags, environ: Mapping[str, str]
) -> Foreign | NotTaken:
    try:
        return _model(name, raw, whole, known, environ)
    except CannotTake as error:
        return NotTaken(name, str(error))


def _model(
    name: str, raw: object, whole: Mapping[object, Any], known: ServerFlags, environ: Mapping[str, str]
) -> Foreign:
    if not isinstance(raw, dict) or not isinstance(raw.get("cmd"), str):
        raise CannotTake("it has no `cmd`")
    macros = _Macros(name, (whole.get("macros"), raw.get("macros")), environ)
    words = _words(macros.replace_in(raw["cmd"]))
    program = Path(words[0]).name if words else ""
    if program in _CONTAINERS:
        raise CannotTake(
            f"it runs in a container ({program}), which has no counterpart; add its model with `llm-switch add`"
        )
    if not program.startswith("llama-server"):
        raise CannotTake(f"its command is {quoted(program, 60)}, and only llama-server can be taken over")
    model = from_flags(name, words[1:], known)
    env, lost = usable_environment([macros.replace_in(str(it)) for it in _list_of(raw.get("env"))])
    forced = _forced(raw.get("filters"))
    # The model's own --alias is what only llama-swap sent.
    return replace(
        model,
        aliases=tuple(macros.replace_in(str(alias)) for alias in _list_of(raw.get("aliases"))),
        entry={**_ttl(raw.get("ttl"), whole.get("globalTTL")), **({"force": forced} if forced else {})},
        environment=tuple(env),
        lost=(*model.lost, *lost, *_lost_of_model(raw)),
    )


class _Macros:
    """The macros that one model sees: its own go before the file's."""

    def __init__(self, name: str, tables: tuple[object, ...], environ: Mapping[str, str]) -> None:
        self._values = {"MODEL_ID": name, "PORT": "0"}  # the port is chosen by `add`
        for table in tables:
            self._values |= {str(key): _text(value) for key, value in _mapping(table).items()}
        self._environ = environ

    def replace_in(self, text: str) -> str:
        """Raises CannotTake: a macro is not defined, or they grow without end."""
        for _ in range(_MOST_DEPTH):
            if not _MACRO.search(text):
                return text
            text = self._once(text)
        raise CannotTake("its macros contain each other")

    def _once(self, text: str) -> str:
        pieces, size, at = [], 0, 0
        for match in _MACRO.finditer(text):
            pieces += [text[at : match.start()], self._value(match[1])]
            size += len(pieces[-1]) + len(pieces[-2])
            if size > _MOST_EXPANDED:
                raise CannotTake(f"its macros grow to more than {_MOST_EXPANDED} characters")
            at = match.end()
        return "".join((*pieces, text[at:]))

    def _value(self, name: str) -> str:
        value = self._environ.get(name[4:]) if name.startswith("env.") else self._values.get(name)
        if value is None:
            what = "the environment has no" if name.startswith("env.") else "there is no macro"
            raise CannotTake(f"{what} {printable(name.removeprefix('env.'), 60)}")
        # A unit is a file that everybody may read. What is left out anyway (--api-key) may hold it.
        return SECRET_VALUE if name.startswith("env.") and SECRET.search(name) else value


def _text(value: object) -> str:
    """YAML takes `on` and `yes` for true, and llama-server takes words."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _words(command: str) -> list[str]:
    """As llama-swap splits it: lines that begin with # are comments, and a line may end with a backslash.

    Raises:
        CannotTake
    """
    if len(command) > _MOST_EXPANDED:
        raise CannotTake(f"its command has more than {_MOST_EXPANDED} characters")
    lines = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    try:
        return shlex.split(re.sub(r"\\\n", " ", "\n".join(lines)))
    except ValueError as error:
        raise CannotTake("the quotes of its command do not match") from error


def _ttl(own: object, usual: object) -> dict[str, object]:
    """-1 is the usual one, 0 is never."""
    ttl = usual if own in (None, -1) else own
    return {"ttl": ttl} if isinstance(ttl, int | float) and not isinstance(ttl, bool) and ttl > 0 else {}


def _forced(filters: object) -> dict[str, object]:
    """`setParams`, where JSON can express it and no macro is in it."""
    forced = {str(key): value for key, value in _mapping(_mapping(filters).get("setParams")).items()}
    try:
        return {} if "${" in json.dumps(forced, allow_nan=False) else forced
    except (TypeError, ValueError, RecursionError):
        return {}


def _lost_of_model(raw: Mapping[object, Any]) -> list[str]:
    keys = [str(key) for key, value in raw.items() if value and key not in _MODEL_TAKEN]
    is_forced = bool(_forced(raw.get("filters")))
    keys += [f"filters.{key}" for key in _mapping(raw.get("filters")) if key != "setParams" or not is_forced]
    check = raw.get("checkEndpoint")
    lost = [f"checkEndpoint {quoted(str(check), 60)}: the proxy asks /health"] if check not in (None, "/health") else []
    return lost + without_counterpart(keys)


def _mapping(value: object) -> dict[object, Any]:
    return value if isinstance(value, dict) else {}


def _list_of(value: object) -> list[object]:
    return value if isinstance(value, list) else []
