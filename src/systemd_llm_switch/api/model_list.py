"""The models in /v1/models and /props: OpenAI's fields, and those that llama-server's router adds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping

from systemd_llm_switch import __version__
from systemd_llm_switch.api.file_facts import FileFacts
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.errors import ProxyError
from systemd_llm_switch.forward.proxy import Proxy
from systemd_llm_switch.openai.shapes import JSON_TYPE, Json, load, object_of, objects_of
from systemd_llm_switch.scheduler import State
from systemd_llm_switch.switching.status import ModelStatus
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

# Our states in the words of llama-server's router. Open WebUI uses them to show loaded models.
_STATUS_VALUE = {
    State.READY.value: "loaded",
    State.DRAINING.value: "loaded",
    State.STARTING.value: "loading",
}
_ASK_TIMEOUT_S = 2.0
_ASK_AGAIN_S = 30.0  # after a backend did not answer
_META = ("n_ctx", "n_ctx_train", "n_params", "size")


def status_value(status: ModelStatus | None) -> str:
    """`loaded`, `loading` or `unloaded`."""
    return "unloaded" if status is None else _STATUS_VALUE.get(status.state, "unloaded")


def router_props() -> Json:
    """The proxy's own /props, like those of llama-server's router: `role` shows that there are several models."""
    return {
        "role": "router",
        "max_instances": 1,
        "models_autoload": True,
        "model_alias": "systemd-llm-switch",
        "model_path": "none",
        "default_generation_settings": {"params": None, "n_ctx": 0},
        "build_info": f"systemd-llm-switch {__version__}",
    }


class ModelList:
    """The entries of /v1/models. Thread-safe."""

    def __init__(self, proxy: Proxy, systemd: Systemd, started: float) -> None:
        self._facts = _Facts(proxy)
        self._files = FileFacts(systemd)
        self._started = int(started)

    def entries(self, config: Config, states: Mapping[str, ModelStatus]) -> Iterator[Json]:
        """Each model, followed by its aliases if the config lists them."""
        self._look(config)
        for model in config.models.values():
            entry = self._entry(model, states.get(model.id))
            yield entry
            for alias in model.aliases if config.server.list_aliases else ():
                yield entry | {"id": alias}

    def entry(self, config: Config, model: Model, status: ModelStatus | None) -> Json:
        """One model."""
        self._look(config)
        return self._entry(model, status)

    def _look(self, config: Config) -> None:
        self._files.look([model.unit for model in config.models.values()])

    def _entry(self, model: Model, status: ModelStatus | None) -> Json:
        """`meta` has the facts that its llama-server reported when it was last loaded; before that, those of its
        file."""
        entry = {
            "id": model.id,
            "object": "model",
            "created": self._started,
            "owned_by": "systemd-llm-switch",
            "aliases": list(model.aliases),
            "status": {"value": status_value(status)},
        }
        meta = self._facts.of(model, status) or self._files.of(model.unit)
        return entry | ({"meta": meta} if meta else {})


def _is_count(value: object) -> bool:
    """Whether it is a number that JSON has exactly everywhere."""
    return type(value) is int and 0 <= value < 1 << 53


class _Facts:
    """The facts that llama-servers report about their models. Each is asked once for each load, when a client lists the
    models. No model is loaded for this."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._asking = threading.Lock()
        self._known: dict[str, Json] = {}  # by unit: its facts when it was last loaded
        self._loads: dict[str, float | None] = {}  # by unit: the load that was asked
        self._ask_again_at: dict[str, float] = {}

    def of(self, model: Model, status: ModelStatus | None) -> Json:
        """Blocks for at most two short requests, and only for the first caller after a load."""
        is_ready = status is not None and status.state == State.READY.value
        load = status.loaded_since if status is not None else None
        if is_ready and self._loads.get(model.unit) != load and self._asking.acquire(blocking=False):
            try:
                self._ask(model, load)
            finally:
                self._asking.release()
        return self._known.get(model.unit, {})

    def _ask(self, model: Model, load: float | None) -> None:
        if time.monotonic() < self._ask_again_at.get(model.unit, 0):
            return
        try:
            listed = self._get(model, "/v1/models")
            props = self._get(model, "/props")
        except ProxyError as error:
            log.info("facts_unknown model=%s reason=%r", model.id, error.message)
            self._ask_again_at[model.unit] = time.monotonic() + _ASK_AGAIN_S
            return
        first = next(iter(objects_of(listed.get("data"))), {})
        said = object_of(props.get("default_generation_settings")) | object_of(first.get("meta"))
        self._known[model.unit] = {name: said[name] for name in _META if _is_count(said.get(name))}
        self._loads[model.unit] = load

    def _get(self, model: Model, path: str) -> Json:
        """The answer of a loaded model's backend; {} if it is not an object.

        Raises:
            ProxyError: the model is not loaded any more, or its backend did not answer.
        """
        answer = self._proxy.pass_through("GET", model, path, b"", JSON_TYPE[1], Client(None), timeout_s=_ASK_TIMEOUT_S)
        try:
            return object_of(load(answer.body))
        except ValueError:
            return {}
