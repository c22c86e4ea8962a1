"""The proxy, wired together and run. Imports all of it, so `serve` imports this only to run the proxy."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from systemd_llm_switch.api.application import Application
from systemd_llm_switch.api.services import Services
from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.config.file import LiveConfig
from systemd_llm_switch.config.records import Config, is_loopback
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.errors import ProxyError
from systemd_llm_switch.forward.proxy import Proxy
from systemd_llm_switch.forward.request_notes import request_notes
from systemd_llm_switch.http_server.server import RESERVE_THREADS, SHUTDOWN_TIMEOUT_S, Server, describe_bind_error
from systemd_llm_switch.observe.event_hub import MOST_WATCHERS
from systemd_llm_switch.observe.observation import Observation
from systemd_llm_switch.scheduler import IN_FLIGHT_LIMIT
from systemd_llm_switch.switching.adoption import Adoption
from systemd_llm_switch.switching.hold_file import Held, HoldFile
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.operations import Operations
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.systemd.manager import Systemd, SystemdError
from systemd_llm_switch.systemd.notify import notify
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

_LAST_CALL_S = 2.0
# How long a thread that computes keeps the interpreter while others want it. A request waits for that after each of its
# system calls, so Python's 5 ms would add up while a long repair runs.
_SWITCH_INTERVAL_S = 0.001


def run_proxy(live: LiveConfig, host: str | None, port: int | None) -> int:
    """Runs the proxy until it is stopped. Returns FAILED if it may not or cannot listen."""
    _log_warnings(live)
    config = live.current()
    host, port = (host or config.server.host).strip("[]"), port or config.server.port
    if not (is_loopback(host) or config.server.has_keys or config.server.allow_unauthenticated):
        log.error(
            "refusing to open %s to the network: set server.api_keys (or api_keys_file) in %s, or say that everybody "
            "may use it with server.allow_unauthenticated: true",
            host,
            live.path,
        )
        return FAILED
    systemd = Systemd()
    contexts = Contexts(config)
    switcher = Switcher(systemd, config, contexts)
    observation = Observation(switcher.units, lambda: services.status())
    logging.getLogger().addHandler(observation.own_log)
    switcher.switch_log.on_switch = lambda record: observation.note_switch(record.as_json())
    observers = [request_notes(observation)]
    proxy = Proxy(live, switcher, Losses(switcher, systemd), observers)
    adoption = Adoption(switcher, systemd, contexts)
    operations = Operations(switcher, adoption, HoldFile.find(os.environ))
    services = Services(live, systemd, proxy, switcher, operations, contexts, observation, host)
    server = Server(host, port, Application(services), _threads(config))
    live.on_change = _Reloading(live, switcher, contexts, server, config)
    _stop_on_signals(server, switcher)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        server.prepare()  # first: a second proxy that finds the port taken must not touch any unit
    except OSError as error:
        log.error("cannot_listen %s", describe_bind_error(host, port, error))
        return FAILED
    held = operations.resume()  # before the first request is read
    args = (adoption, config, operations, held)
    threading.Thread(target=_take_up, args=args, name="take-up", daemon=True).start()
    address = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d config=%s models=%s", address, port, live.path, ",".join(config.models))
    server.run()
    log.info("stopped")
    return DONE


def _threads(config: Config) -> int:
    return config.server.queue_limit + IN_FLIGHT_LIMIT + RESERVE_THREADS + MOST_WATCHERS


class _Reloading:
    """Applies a changed config file to the running proxy."""

    def __init__(
        self, live: LiveConfig, switcher: Switcher, contexts: Contexts, server: Server, config: Config
    ) -> None:
        self._live = live
        self._switcher = switcher
        self._contexts = contexts
        self._server = server
        self._bound = (config.server.host, config.server.port)

    def __call__(self, config: Config | None, error: str | None) -> None:
        if config is None:
            log.error("config_broken the last good config stays in force: %s", error)
            return
        log.info("config_reloaded path=%s models=%s", self._live.path, ",".join(config.models))
        _log_warnings(self._live)
        if (config.server.host, config.server.port) != self._bound:
            log.warning("config_waits server.host and server.port take effect when the proxy is restarted")
        self._contexts.configure(config)
        self._switcher.configure(config)
        self._server.allow_threads(_threads(config))


def _log_warnings(live: LiveConfig) -> None:
    for warning in live.warnings:
        log.warning("config_warning %s", warning)


def _take_up(adoption: Adoption, config: Config, operations: Operations, held: Held | None) -> None:
    """Adopts the models that an earlier proxy left running, and loads those that `preload` names. Under a hold it does
    neither: it unloads what is still loaded, if the earlier proxy did not do that."""
    try:
        if held is None:
            adoption.adopt()
        else:
            adoption.learn()  # contexts can be forgotten under a hold, too
            if not held.is_freed:
                operations.complete(Client(None))
    except (SystemdError, ProxyError) as error:
        log.error("take_up_failed %s", error)
        return  # nothing can be loaded either
    for name in config.server.preload if held is None else ():
        model = config.names[name]
        try:
            operations.load(model, Client(None))
        except ProxyError as error:
            log.error("preload_failed model=%s reason=%r", model.id, error.message)


def _stop_on_signals(server: Server, switcher: Switcher) -> None:
    """SIGTERM and SIGINT end the proxy in order: waiting requests get an error, running ones finish, models stay."""

    def stop() -> None:
        notify("STOPPING=1")
        switcher.close()
        # Comes before the server drops the connections of running requests, so that they get an error that says why.
        last_call = threading.Timer(SHUTDOWN_TIMEOUT_S - _LAST_CALL_S, switcher.interrupt_all)
        last_call.start()
        server.stop()
        last_call.cancel()

    def on_signal(number: int, frame: object) -> None:
        log.info("stopping signal=%s", signal.Signals(number).name)
        threading.Thread(target=stop, name="stop").start()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
