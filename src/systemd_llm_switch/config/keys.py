"""The keys of the config: one row for each key, with its cast, its JSON Schema type and its meaning. Pure.

The parser, `config.schema.json` and a test of the documentation all read these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from systemd_llm_switch.config import casts
from systemd_llm_switch.config.casts import Cast

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be: the cast that checks it, and its type in JSON Schema."""

    cast: Cast
    schema: Json


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping whose keys are known."""

    keys: Mapping[str, Key]


@dataclass(frozen=True, slots=True)
class Key:
    """One row: what the value may be, and what it means."""

    kind: Kind | Section
    description: str


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


_STRING: Json = {"type": "string", "minLength": 1}
FLAG = Kind(casts.as_flag, {"type": "boolean"})
TEXT = Kind(casts.as_text, _STRING)
TEXTS = Kind(casts.as_texts, _list_of(_STRING))
COUNT = Kind(casts.as_count, {"type": "integer", "minimum": 0})
POSITIVE = Kind(casts.as_positive, {"type": "number", "exclusiveMinimum": 0})
NOT_NEGATIVE = Kind(casts.as_not_negative, {"type": "number", "minimum": 0})
PORT = Kind(casts.as_port, {"type": "integer", "minimum": 1, "maximum": 65535})
HOST = Kind(casts.as_host, _STRING)
HOSTS = Kind(casts.as_hosts, _list_of(_STRING))
ORIGINS = Kind(casts.as_origins, _list_of(_STRING))
URL = Kind(casts.as_url, {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp]://[^/?#\s]+:[0-9]+/*$"})
STREAMING = Kind(casts.as_streaming, {"enum": ["buffered", "live"]})
UNIT = Kind(casts.as_unit, {"type": "string", "pattern": r"^[A-Za-z0-9:_.\\@-]+\.service$", "maxLength": 255})
SECRET = Kind(casts.as_key, _STRING)
FIELDS = Kind(casts.as_fields, {"type": "object"})

CONTEXTS: Mapping[str, Key] = {
    "max_gb": Key(NOT_NEGATIVE, "GB that all saved contexts may take on the disk; 0 keeps none."),
    "max_age_h": Key(POSITIVE, "Hours after which a context that nobody used is deleted."),
    "warm": Key(FLAG, "Read what all conversations of a model begin with while it is loaded and idle."),
}
SERVER: Mapping[str, Key] = {
    "host": Key(HOST, "The address to listen on. Any address but loopback needs api_keys."),
    "port": Key(PORT, "The port to listen on: clients connect to http://HOST:PORT/v1."),
    "llama_url": Key(URL, "Where the models' llama-servers listen."),
    "health_timeout": Key(POSITIVE, "Seconds that a model may take to become ready."),
    "request_timeout": Key(POSITIVE, "Seconds that one request may run at the model."),
    "queue_limit": Key(COUNT, "Requests that may wait. Further ones get 429 with Retry-After."),
    "max_body_mb": Key(POSITIVE, "The size of a request in MB. A larger one gets 413."),
    "max_reply_mb": Key(POSITIVE, "The size of a backend's reply in MB. A larger one becomes a 502."),
    "streaming": Key(STREAMING, "live passes the model's words on as they come; tool calls are still sent whole."),
    "vram": Key(POSITIVE, "GiB of the card. Models whose vram fits together stay loaded together."),
    "max_wait": Key(NOT_NEGATIVE, "Seconds that a waiting model lets the loaded one go on. Default: measured."),
    "min_resident": Key(NOT_NEGATIVE, "Seconds that a loaded model may stay, however many wait. Default: measured."),
    "drain_timeout": Key(NOT_NEGATIVE, "Seconds that a running request may delay a switch. Default: request_timeout."),
    "preload": Key(TEXTS, "The models to load when the proxy starts."),
    "api_keys": Key(
        TEXTS, "If any is set, every route but /health and the page's files needs `Authorization: Bearer KEY`."
    ),
    "api_keys_file": Key(TEXT, "A file with API keys, one a line. ~ and ${VARIABLE} are expanded."),
    "allow_unauthenticated": Key(FLAG, "Listen beyond loopback without keys."),
    "cors_origins": Key(ORIGINS, "Web pages that may use the proxy, for instance https://chat.example.org."),
    "allowed_hosts": Key(HOSTS, "More host names by which a proxy on loopback may be addressed."),
    "strict_names": Key(FLAG, "Take only exact model names; not openai/NAME, NAME:latest or another case of NAME."),
    "contexts": Key(Section(CONTEXTS), "Contexts that survive a switch."),
    "metrics_open": Key(FLAG, "Serve /metrics without an API key."),
    "list_aliases": Key(FLAG, "List each alias in /v1/models as an entry of its own."),
}
MODEL: Mapping[str, Key] = {
    "unit": Key(UNIT, "The systemd user unit that serves the model."),
    "aliases": Key(TEXTS, "More names for the model."),
    "llama_url": Key(URL, "Where the model's llama-server listens, if not at server.llama_url."),
    "vram": Key(NOT_NEGATIVE, "GiB that the model needs; 0 for a model on the CPU. Default: the whole card."),
    "ttl": Key(POSITIVE, "Seconds idle after which the model is unloaded. Default: never."),
    "streaming": Key(STREAMING, "buffered or live. Default: server.streaming."),
    "params": Key(FIELDS, "Request fields that a request may override, for instance temperature: 0.7."),
    "force": Key(FIELDS, "Request fields that a request may not override."),
    "contexts": Key(FLAG, "Save what the model has read when it is stopped, and read it back when it is loaded."),
    "backend_key": Key(SECRET, "The API key that the model's llama-server asks for (its --api-key)."),
    "backend_key_file": Key(TEXT, "A file with that key in its first line. ~ and ${VARIABLE} are expanded."),
}
REPAIR: Mapping[str, Key] = {
    "rescue": Key(FLAG, "Turn tool calls that a model left as text into real tool calls."),
    "thoughts": Key(FLAG, "Move thoughts that a backend left in the text (`<think>…</think>`) to `reasoning_content`."),
}
MODELS = Kind(lambda value: value, {"type": "object"})  # its keys are the user's: the parser reads them one by one
TOP: Mapping[str, Key] = {
    "server": Key(Section(SERVER), "Settings of the proxy."),
    "models": Key(MODELS, "The models: the name that clients send as `model`, and the systemd unit that serves it."),
    "repair": Key(Section(REPAIR), "The repair of replies."),
}
