"""An HTTP client of the running proxy: uses the address and the key of the config in force."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from systemd_llm_switch import advice
from systemd_llm_switch.addresses import http_url, reachable
from systemd_llm_switch.command.exits import DONE, FAILED, NO_PROXY
from systemd_llm_switch.command.tables import error_lines
from systemd_llm_switch.config.file import find, load
from systemd_llm_switch.config.records import Config, ConfigError
from systemd_llm_switch.quoting import printable, quoted
from systemd_llm_switch.wsgi import SERVER_NAME

Json = dict[str, Any]

_UNIT = "llm-switch.service"
_CONNECT_TIMEOUT_S = 5.0
MOST_CHARACTERS = 5000  # of a message


class Refused(Exception):
    """The proxy refused the request, or it failed; the message is the proxy's."""


class NoProxy(Exception):
    """No proxy answers; the message says where, and what to do."""


class ProxyClient:
    """Asks one proxy. Each call makes a new connection.

    Raises, from every method that asks: Refused, NoProxy.
    """

    def __init__(self, host: str, port: int, key: str | None = None) -> None:
        self._address = (reachable(host), port)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @property
    def url(self) -> str:
        return http_url(*self._address)

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        return self._ask("GET", path, None)

    def get_text(self, path: str) -> str:
        """The text of a GET."""
        with self._reply("GET", path, None) as reply:
            return reply.read().decode("utf-8", "replace")

    def post(self, path: str, body: Json) -> Any:
        """The JSON of a POST. Waits as long as the proxy takes."""
        return self._ask("POST", path, body)

    def events(self, method: str, path: str, body: Json | None = None) -> Iterator[tuple[str, str]]:
        """The events of a stream, each with its name (empty for most) and its data. Closing the iterator ends it."""
        with self._reply(method, path, body) as reply:
            if reply.headers.get_content_type() != "text/event-stream":
                raise self._stranger("its reply is not a stream of events")
            name = ""
            for raw in reply:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    yield name, line[5:].strip()
                elif not line:
                    name = ""

    def _ask(self, method: str, path: str, body: Json | None) -> Any:
        with self._reply(method, path, body) as reply:
            return json.loads(reply.read())

    @contextmanager
    def _reply(self, method: str, path: str, body: Json | None) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(*self._address, timeout=_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a load takes minutes
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            reply = connection.getresponse()
            if (name := reply.getheader("Server", "")) != SERVER_NAME:
                raise self._stranger(f"it calls itself {quoted(name, 60)}" if name else "it does not say what it is")
            if reply.status >= 400:
                raise self._refusal(reply.status, reply.read())
            yield reply
        except (OSError, http.client.HTTPException) as error:
            raise NoProxy(
                f"no proxy answers at {self.url} ({error or type(error).__name__}); "
                f"`systemctl --user status {_UNIT}` shows why, `systemctl --user start {_UNIT}` starts it"
            ) from error
        except ValueError as error:
            raise self._stranger("its reply is not JSON") from error
        finally:
            connection.close()

    def _refusal(self, status: int, raw: bytes) -> Exception:
        """The proxy's error, or that it is not the proxy's."""
        try:
            return Refused(printable(str(json.loads(raw)["error"]["message"]), MOST_CHARACTERS))
        except (ValueError, KeyError, TypeError):
            return self._stranger(f"it returned status {status} without a message")

    def _stranger(self, why: str) -> NoProxy:
        see = advice.who_listens(self._address[1])
        return NoProxy(f"what answers at {self.url} is not the proxy: {why}; `{see}` shows which program it is")


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """`--config`, which every verb that asks the proxy takes."""
    parser.add_argument("--config", metavar="FILE", help="the proxy's config: its address and its key; as for serve")


def configured(arguments: argparse.Namespace) -> Config:
    """The config in force.

    Raises:
        ConfigError
    """
    return load(find(arguments.config, os.environ))


def config_problem(arguments: argparse.Namespace, error: ConfigError) -> str:
    """The message for a config that cannot be used: which file it is, and what is wrong with it."""
    path = printable(str(find(arguments.config, os.environ)))
    return str(error) if path in str(error) else f"the config {path} cannot be used: {error}"


def client_of(config: Config) -> ProxyClient:
    """The proxy of a config. `$LLM_SWITCH_API_KEY` goes before the config's first key."""
    key = os.environ.get("LLM_SWITCH_API_KEY") or next(iter(config.server.api_keys), None)
    return ProxyClient(config.server.host, config.server.port, key)


def run_with_proxy(
    arguments: argparse.Namespace,
    do: Callable[[ProxyClient], int | None],
    without: Callable[[Config, str], None] | None = None,
) -> int:
    """Calls `do` with the running proxy, and prints errors to stderr. If no proxy answers, calls `without` with that
    error. Returns the exit code."""
    try:
        config = configured(arguments)
    except ConfigError as error:
        return complain(config_problem(arguments, error), FAILED)
    try:
        return do(client_of(config)) or DONE
    except Refused as error:
        return complain(error_lines(str(error)), FAILED)
    except NoProxy as error:
        complain(str(error), NO_PROXY)
        if without is not None:
            without(config, str(error))
        return NO_PROXY
    except KeyboardInterrupt:
        return complain("", FAILED)
    except BrokenPipeError:  # `llm-switch logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def complain(message: str, code: int) -> int:
    """Prints to stderr; returns the exit code."""
    print(message, file=sys.stderr)
    return code


def model_query(model: str) -> str:
    """A model's id as a part of a query."""
    return f"model={quote(model, safe='')}"


def model_id(client: ProxyClient, name: str) -> str:
    """The id of a model that is named by its id or an alias.

    Raises:
        NoProxy, Refused: the proxy does not know it.
    """
    return str(client.get(f"/v1/models/{quote(name)}")["id"])
