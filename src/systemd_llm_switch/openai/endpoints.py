"""What is forwarded to a backend, and how much the proxy understands of it: a table, and nothing else."""

from __future__ import annotations

from enum import Enum


class ReplyKind(Enum):
    """How a reply is treated."""

    CHAT = "chat"  # repaired; streamed live or split when finished
    TEXT = "text"  # the same, for text completions
    PLAIN = "plain"  # forwarded as it is; streamed as it comes when the client asks


FORWARDED: dict[str, ReplyKind] = {
    "/v1/chat/completions": ReplyKind.CHAT,
    "/v1/completions": ReplyKind.TEXT,
    "/v1/embeddings": ReplyKind.PLAIN,
    "/v1/rerank": ReplyKind.PLAIN,
    "/v1/reranking": ReplyKind.PLAIN,
    "/rerank": ReplyKind.PLAIN,
    "/v1/responses": ReplyKind.PLAIN,
    "/v1/messages": ReplyKind.PLAIN,
    "/v1/messages/count_tokens": ReplyKind.PLAIN,
    "/v1/audio/transcriptions": ReplyKind.PLAIN,
    "/infill": ReplyKind.PLAIN,
    "/tokenize": ReplyKind.PLAIN,
    "/detokenize": ReplyKind.PLAIN,
    "/apply-template": ReplyKind.PLAIN,
}
