"""Which route speaks which dialect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from systemd_llm_switch.dialects.dialect import Dialect
from systemd_llm_switch.dialects.messages import Messages, error_body
from systemd_llm_switch.dialects.messages_request import chat_of_messages
from systemd_llm_switch.dialects.responses import Responses
from systemd_llm_switch.dialects.responses_request import chat_of_responses
from systemd_llm_switch.errors import InvalidJson
from systemd_llm_switch.openai.endpoints import CHAT_PATH
from systemd_llm_switch.openai.large_json import dump_like
from systemd_llm_switch.openai.request import Request
from systemd_llm_switch.openai.shapes import Json

_ANTHROPIC = ("/v1/messages", "/messages")


class _Translation(NamedTuple):
    as_chat: Callable[[Json], Json]
    answers: Callable[[Json], Dialect]


_TRANSLATED = {
    "/v1/messages": _Translation(chat_of_messages, Messages),
    "/v1/responses": _Translation(chat_of_responses, Responses),
}


def translate(request: Request) -> tuple[Request, Dialect]:
    """The request to serve, which is a chat where the route is another API's, and what its client speaks.

    Raises:
        InvalidJson, InvalidRequest: it asks for what no chat can do.
    """
    translation = _TRANSLATED.get(request.path)
    if translation is None:
        return request, Dialect()
    try:
        body = translation.as_chat(request.body)
        raw = dump_like(request.raw, body)
    except RecursionError as error:
        raise InvalidJson("the request body is nested too deeply") from error
    return replace(request, path=CHAT_PATH, body=body, raw=raw, wants_usage=True), translation.answers(request.body)


def error_of_route(path: str, status: int, body: Json) -> Json:
    """An error's body on a route: Anthropic's clients read another shape than OpenAI's."""
    return error_body(status, body["error"]) if path.startswith(_ANTHROPIC) else body
