"""What is forwarded to a backend, and how much the proxy understands of it: a table, and nothing else."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """How a reply is treated."""

    CHAT = "chat"  # repaired; streamed live or split when finished
    TEXT = "text"  # the same, for text completions
    PLAIN = "plain"  # forwarded as it is; streamed as it comes when the client asks


FORWARDED: dict[str, Kind] = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.TEXT,
    "/v1/embeddings": Kind.PLAIN,
    "/v1/rerank": Kind.PLAIN,
    "/v1/reranking": Kind.PLAIN,
    "/rerank": Kind.PLAIN,
    "/v1/responses": Kind.PLAIN,
    "/v1/messages": Kind.PLAIN,
    "/v1/messages/count_tokens": Kind.PLAIN,
    "/v1/audio/transcriptions": Kind.PLAIN,
    "/infill": Kind.PLAIN,
    "/tokenize": Kind.PLAIN,
    "/detokenize": Kind.PLAIN,
    "/apply-template": Kind.PLAIN,
}
