"""The routes: web.py classes that read a request, make one call and write the answer.

Must not know how a request is served. Each method returns a whole answer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar
from urllib.parse import parse_qs, unquote

import web

from systemd_llm_switch.api.model_list import router_props
from systemd_llm_switch.api.services import Services
from systemd_llm_switch.backend.exchange import Message
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.errors import (
    InvalidRequest,
    MissingModel,
    ModelNotFound,
    RequestNotFound,
    UnknownUrl,
)
from systemd_llm_switch.forward.answer import Answer, Sendable, Start
from systemd_llm_switch.openai.request import parse_object
from systemd_llm_switch.openai.shapes import JSON_TYPE, Json, dump
from systemd_llm_switch.openai.sse import SSE_HEADERS
from systemd_llm_switch.quoting import LIMIT, quoted
from systemd_llm_switch.switching.hold_file import MOST_MINUTES
from systemd_llm_switch.waiting import Client
from systemd_llm_switch.wsgi import CLIENT_FD, RAW_PATH, Environ

_MOST_QUERY_FIELDS = 16
_CONVERSATION = "X-Conversation-Id"
_CONVERSATION_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Handler:
    """Base of the routes: reading and writing."""

    services: ClassVar[Services]

    @property
    def client(self) -> Client:
        return _client(web.ctx.env)

    @property
    def content_type(self) -> str:
        return _content_type(web.ctx.env)

    @property
    def accept(self) -> str:
        """The client's Accept header (RFC 9110, 12.5.1)."""
        return str(web.ctx.env.get("HTTP_ACCEPT", ""))

    def read_body(self) -> bytes:
        """The whole body; the server has read and bounded it."""
        return _body(web.ctx.env)

    def read_object(self) -> Json:
        """The body as an object; an empty one is an empty object."""
        raw = self.read_body()
        return parse_object(raw) if raw.strip() else {}

    def read_order(self, *known: str) -> Json:
        """The body of an operator's command, with these keys. On llama-server's own routes (/models/load), other keys
        are ignored.

        Raises:
            InvalidRequest: an unknown key. It might be a typing error, which must not change the command.
        """
        body = self.read_object()
        unknown = next((key for key in body if key not in known), None)
        if unknown is not None and web.ctx.path.startswith("/api/"):
            keys = " and ".join(f"`{key}`" for key in known) or "none"
            message = f"{quoted(unknown)} is not a key of {web.ctx.path}; known keys: {keys}"
            raise InvalidRequest(message, param=unknown)
        return body

    def read_query(self, name: str) -> str:
        """A field of the query, or an empty string."""
        try:
            fields = parse_qs(str(web.ctx.query).removeprefix("?"), max_num_fields=_MOST_QUERY_FIELDS)
        except ValueError as error:
            raise InvalidRequest(f"the query has more than {_MOST_QUERY_FIELDS} fields") from error
        return fields.get(name, [""])[0]

    def read_header(self, name: str) -> str:
        """A field of the request's head, or an empty string."""
        return str(web.ctx.env.get(f"HTTP_{name.upper().replace('-', '_')}", ""))

    def write(self, value: object) -> Answer:
        """Answers with JSON."""
        return Answer(200, (JSON_TYPE,), dump(value))


class Forwarded(Handler):
    """The routes that are forwarded. This class only lets web.py know that they take POST: `application` passes the
    POSTs to `forward`."""

    def POST(self, path: str) -> Answer:
        raise UnknownUrl(f"no such route: POST {quoted(web.ctx.path)}; did you mean {path}?")


def forward(services: Services, path: str, environ: Environ, start: Start) -> None:
    """Answers a request for a model. It does not use web.py, which would cost time on most requests.

    Raises:
        ClientGone: the answer could not be sent to its end.
    """
    client = environ.get("HTTP_USER_AGENT", "")[:LIMIT]
    services.proxy.serve(path, _body(environ), _content_type(environ), environ.get(CLIENT_FD), start, client)


class Watched(Handler):
    """The events of the models. This class only lets web.py know that they take GET: `watch` sends them."""

    def GET(self) -> Answer:
        return Answer(200, SSE_HEADERS, b"")  # only HEAD gets here


def watch(services: Services, environ: Environ, start: Start) -> None:
    """Sends the events of the models.

    Raises:
        QueueFull: too many clients watch already.
        ClientGone: the usual end.
    """
    services.model_events.send(_client(environ), start)


def _client(environ: Environ) -> Client:
    return Client(environ.get(CLIENT_FD))


def _content_type(environ: Environ) -> str:
    return str(environ.get("CONTENT_TYPE") or JSON_TYPE[1])


def _body(environ: Environ) -> bytes:
    body: bytes = environ["wsgi.input"].read()
    return body


class Upstream(Handler):
    """A loaded model's backend, its own web page included. The path goes on as its bytes came: the backend decodes
    it."""

    def GET(self, _: str) -> Sendable:
        raw_path = str(web.ctx.env[RAW_PATH])
        rest = split_upstream(raw_path, self.services.live.current())[1]
        if rest == "/" and not raw_path.endswith("/") and "text/html" in self.read_header("Accept"):
            return _add_slash(raw_path)  # the page's own paths are relative to it
        return self.pass_on("GET", b"")

    def POST(self, _: str) -> Sendable:
        return self.pass_on("POST", self.read_body())

    def DELETE(self, _: str) -> Sendable:
        return self.pass_on("DELETE", self.read_body())

    def pass_on(self, method: str, body: bytes) -> Sendable:
        model, path = split_upstream(web.ctx.env[RAW_PATH], self.services.live.current())
        message = Message(method, path + web.ctx.query, body, self.content_type, tuple(self.fields_to_pass(method)))
        takes_gzip = "gzip" in self.read_header("Accept-Encoding")
        with ExitStack() as stack:
            stack.enter_context(self.services.unqueued())
            return self.services.proxy.passing.as_it_comes(model, message, self.client, stack, takes_gzip=takes_gzip)

    def fields_to_pass(self, method: str) -> Iterator[tuple[str, str]]:
        """llama-server has its page only compressed, whoever asks for it, and knows a conversation by a field."""
        if method == "GET":
            yield "Accept-Encoding", "gzip"
        conversation = self.read_header(_CONVERSATION)
        if _CONVERSATION_ID.fullmatch(conversation):
            yield _CONVERSATION, conversation


class UpstreamPass(Handler):
    """Lets the browser of whoever has a key open a model's own web page."""

    def POST(self) -> Answer:
        self.read_order()
        answer = self.write({"success": True})
        return answer._replace(headers=(*answer.headers, ("Set-Cookie", self.services.access().pass_cookie())))


def _add_slash(raw_path: str) -> Answer:
    return Answer(308, (("Location", f"./{raw_path.rpartition('/')[2]}/"),), b"")


def split_upstream(raw_path: str, config: Config) -> tuple[Model, str]:
    """The model that `/upstream/MODEL/PATH` names, and the path. A model's id may have slashes, escaped or not.

    Raises:
        ModelNotFound
    """
    segments = raw_path.split("/")
    most = max((name.count("/") for name in config.names), default=0) + len(("", "upstream", "MODEL"))
    for count in range(min(most, len(segments)), 0, -1):
        name = unquote("/".join(segments[:count])).removeprefix("/upstream/")
        if name in config.names:
            return config.names[name], "/" + "/".join(segments[count:])
    raise ModelNotFound(unquote(raw_path).removeprefix("/upstream/").partition("/")[0], config.models)


class Models(Handler):
    """The configured models. Loads none."""

    def GET(self) -> Answer:
        states = self.services.report.models()
        entries = self.services.model_list.entries(self.services.live.current(), states)
        return self.write({"object": "list", "data": list(entries)})


class OneModel(Handler):
    """One configured model, by id or alias."""

    def GET(self, name: str) -> Answer:
        config = self.services.live.current()
        model = config.find_model(name)
        return self.write(self.services.model_list.entry(config, model, self.services.report.models().get(model.id)))


class Props(Handler):
    """`?model=NAME`: the properties of a loaded model's llama-server. Without it: the proxy's own."""

    def GET(self) -> Answer:
        name = self.read_query("model")
        if not name:
            return self.write(router_props())
        model = self.services.live.current().find_model(name)
        with self.services.unqueued():
            return self.services.proxy.pass_through("GET", model, "/props", b"", JSON_TYPE[1], self.client)


class Health(Handler):
    """The proxy's own health."""

    def GET(self) -> Answer:
        return self.write({"status": "ok"})


class Status(Handler):
    """What is loaded, which requests wait, what went wrong."""

    def GET(self) -> Answer:
        return self.write(self.services.status())


class Load(Handler):
    """Loads a model by hand; answers when it is ready."""

    def POST(self) -> Answer:
        body = self.read_order("model", "wait")
        model = self.named_model(body)
        with self.services.unqueued():
            if _read_flag(body, "wait", default=True):
                self.services.operations.load(model, self.client)
            else:
                self.services.operations.begin_load(model)
        status = self.services.report.models()[model.id]
        return self.write({"success": True, "model": model.id, **dataclasses.asdict(status)})

    def named_model(self, body: Json) -> Model:
        config = self.services.live.current()
        name = body.get("model")
        if name is None or name == "":
            raise MissingModel(config.models)
        if not isinstance(name, str):
            raise InvalidRequest("`model` must be a string", param="model")
        return config.find_model(name)


class Unload(Load):
    """Frees the VRAM of one model, or of all; answers when it is free."""

    def POST(self) -> Answer:
        body = self.read_order("model", "force", "wait")
        force, client = _read_flag(body, "force"), self.client if _read_flag(body, "wait", default=True) else None
        config: Config = self.services.live.current()
        models = [self.named_model(body)] if body.get("model") is not None else list(config.models.values())
        with self.services.unqueued():
            unloaded = self.services.operations.unload(models, force, client)
        return self.write({"success": True, "models": [model.id for model in unloaded]})


class Forget(Load):
    """Deletes saved contexts of one model, or of all."""

    def POST(self) -> Answer:
        body = self.read_order("model")
        config: Config = self.services.live.current()
        models = [self.named_model(body)] if body.get("model") is not None else list(config.models.values())
        with self.services.unqueued():
            forgotten, size = self.services.contexts.forget(models)
        return self.write({"models": forgotten, "bytes": size})


class Hold(Handler):
    """Keeps the VRAM free for something else; answers when it is free."""

    def POST(self) -> Answer:
        body = self.read_order("minutes", "force", "pause", "wait")
        minutes, force, pause = self.read_minutes(body), _read_flag(body, "force"), _read_flag(body, "pause")
        client = self.client if _read_flag(body, "wait", default=True) else None
        left_s = math.inf if minutes is None else minutes * 60
        with self.services.unqueued():
            warning = self.services.operations.hold(left_s, force, pause, client)
        return self.write(_success(warning, on_hold=self.services.switcher.on_hold, minutes=minutes))

    def read_minutes(self, body: Json) -> float | None:
        minutes: object = body.get("minutes")
        if minutes is None:
            return None
        if isinstance(minutes, bool) or not isinstance(minutes, int | float):
            raise InvalidRequest("`minutes` must be a number", param="minutes")
        if not 0 < minutes <= MOST_MINUTES:
            raise InvalidRequest(
                f"`minutes` must be greater than 0 and at most {MOST_MINUTES}; leave it out for a hold that lasts "
                f"until it is released",
                param="minutes",
            )
        return minutes


class Cancel(Handler):
    """Takes a waiting request out of the queue."""

    def POST(self) -> Answer:
        number: object = self.read_order("id").get("id")
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidRequest("`id` must be the number of a request in `queue` of /api/status", param="id")
        if not self.services.switcher.cancel(number):
            raise RequestNotFound(f"no request {quoted(str(number))} waits; `queue` in /api/status lists those that do")
        return self.write({"success": True, "id": number})


class Release(Handler):
    """Ends a hold."""

    def POST(self) -> Answer:
        self.read_order()
        warning = self.services.operations.release()
        return self.write(_success(warning, on_hold=False))


def _success(warning: str | None, **fields: object) -> Json:
    """A success, with a warning for the operator, if there is one."""
    return {"success": True, **fields} | ({"warning": warning} if warning else {})


def _read_flag(body: Json, name: str, *, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` must be true or false", param=name)
    return value
