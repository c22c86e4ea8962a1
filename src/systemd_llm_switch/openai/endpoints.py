"""Tables of the routes that are forwarded to a backend, and how each reply is treated."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class ReplyKind(Enum):
    """How a reply is treated."""

    CHAT = "chat"  # repaired; streamed live, or split when it is finished
    TEXT = "text"  # the same, for text completions
    TRANSLATED = "translated"  # becomes a chat, and its reply goes back in the client's dialect
    PLAIN = "plain"  # forwarded unchanged; streamed as it comes if the client asks for a stream


CHAT_PATH = "/v1/chat/completions"

FORWARDED: dict[str, ReplyKind] = {
    CHAT_PATH: ReplyKind.CHAT,
    "/v1/completions": ReplyKind.TEXT,
    "/v1/embeddings": ReplyKind.PLAIN,
    "/v1/rerank": ReplyKind.PLAIN,
    "/v1/reranking": ReplyKind.PLAIN,
    "/rerank": ReplyKind.PLAIN,
    "/v1/responses": ReplyKind.TRANSLATED,
    "/v1/messages": ReplyKind.TRANSLATED,
    "/v1/messages/count_tokens": ReplyKind.PLAIN,
    "/v1/audio/transcriptions": ReplyKind.PLAIN,
    "/infill": ReplyKind.PLAIN,
    "/tokenize": ReplyKind.PLAIN,
    "/detokenize": ReplyKind.PLAIN,
    "/apply-template": ReplyKind.PLAIN,
}

_SHORT = {path.removeprefix("/v1"): path for path in FORWARDED if path.startswith("/v1/")}

# Each accepted path, and the path that is forwarded for it: a route without /v1 means the same route with /v1.
# (llama-server has its own `/completions`. A client that asks this proxy for it has a base URL without /v1.)
TAKEN: Mapping[str, str] = _SHORT | {path: path for path in FORWARDED}

# llama-server's own routes. Its clients name no model there, because a llama-server has only one.
MODEL_IS_OPTIONAL = frozenset(("/infill", "/tokenize", "/detokenize", "/apply-template"))

# Plain routes whose replies name their model.
NAMES_MODEL = frozenset(("/v1/embeddings", "/v1/rerank", "/v1/reranking", "/rerank"))
