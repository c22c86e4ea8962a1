"""The routes of the web page: `/` and its files. For programs, `/` answers with JSON."""

from __future__ import annotations

from systemd_llm_switch import __version__
from systemd_llm_switch.api.handlers import Handler
from systemd_llm_switch.errors import UnknownUrl
from systemd_llm_switch.forward.answer import Answer
from systemd_llm_switch.page import files
from systemd_llm_switch.quoting import quoted

_NAME = "systemd-llm-switch"
_LINKS = {
    "page": "/",
    "openai": "/v1",
    "models": "/v1/models",
    "status": "/api/status",
    "events": "/api/events",
    "requests": "/api/requests",
    "logs": "/api/logs",
    "metrics": "/metrics",
    "health": "/health",
}


class Page(Handler):
    """The page for browsers, and JSON for other clients."""

    def GET(self) -> Answer:
        if "text/html" in self.read_header("Accept"):
            return self.send_file("index.html")
        answer = self.write({"name": _NAME, "version": __version__, "links": _LINKS})
        return answer._replace(headers=(*answer.headers, ("Vary", "Accept")))

    def send_file(self, name: str) -> Answer:
        """
        Raises:
            UnknownUrl: the file does not exist.
        """
        file = files.find(name)
        if file is None:
            raise UnknownUrl(f"the page has no file {quoted(name)}")
        headers = (("Content-Type", file.content_type), ("ETag", file.etag), ("Vary", "Accept"), *files.HEADERS)
        if file.is_known(self.read_header("If-None-Match")):
            return Answer(304, headers, b"")
        return Answer(200, headers, file.body)


class Static(Page):
    """One of the page's files."""

    def GET(self, name: str) -> Answer:  # type: ignore[override]  # web.py passes the pattern's groups
        return self.send_file(name)


class Icon(Page):
    """The icon, where a browser looks for it if a text such as /metrics is opened."""

    def GET(self) -> Answer:
        return self.send_file("icon.svg")


ROUTES: tuple[tuple[str, type[Handler]], ...] = ((r"/", Page), (r"/static/(.+)", Static), (r"/favicon\.ico", Icon))
