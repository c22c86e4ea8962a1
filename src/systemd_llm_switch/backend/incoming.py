"""The parser of a backend's HTTP reply. Pure: bytes in; status, content type and body out."""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_MOST_VALUE_BYTES = 1000  # of a field: none that is used here has so long a one, and clients refuse much longer ones


class NotHttp(Exception):
    """The bytes are not a reply in HTTP."""


class Incoming:
    """One reply, as far as it has arrived. Interim replies (1xx) are skipped."""

    __slots__ = (
        "_body",
        "_has_length",
        "_has_surplus",
        "_is_closing",
        "_parser",
        "content_encoding",
        "content_type",
        "has_head",
        "is_complete",
        "status",
    )

    def __init__(self) -> None:
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self.status = 0
        self.content_type = ""
        self.content_encoding = ""
        self._body: list[bytes] = []
        self.has_head = False
        self.is_complete = False
        self._has_surplus = False

    def feed(self, received: bytes) -> None:
        """Takes bytes in.

        Raises:
            NotHttp
        """
        if self._parser is None:
            self._has_surplus = True
            return
        before = len(self._body)
        try:
            self._parser.feed_data(received)
        except (HttpParserError, HttpParserUpgrade) as error:
            # What follows a whole reply does not belong to it; the connection is not used again.
            if not self.is_complete:
                is_upgrade = isinstance(error, HttpParserUpgrade)  # its text is a number
                raise NotHttp("it goes on in another protocol" if is_upgrade else str(error)) from error
        if len(self._body) > before + 1:  # many small chunks: the objects would take far more memory than the bytes
            self._body[before:] = [b"".join(self._body[before:])]

    def take(self) -> bytes:
        """The body since the last call."""
        data = b"".join(self._body)
        self._body.clear()
        return data

    def end(self) -> None:
        """The connection ended, and so the reply is complete."""
        self.is_complete = self._has_surplus = True
        self.close()

    def close(self) -> None:
        """Nothing more will come. The parser and this object refer to each other until then: a reference cycle."""
        self._parser = None

    @property
    def has_body(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._body)

    @property
    def is_of_events(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the end of the body (RFC 9112, 6.3)."""
        return self.has_head and not self._has_length

    @property
    def leaves_connection(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.is_complete and not self._has_surplus and not self._is_closing

    # The parser calls these, also for bytes that follow a whole reply and do not belong to it.

    def on_message_begin(self) -> None:
        self._has_surplus = self.is_complete
        if not self.is_complete:
            self.content_type = "application/json"
            self.content_encoding = ""
            self._has_length = False
            self._is_closing = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_complete or len(value) > _MOST_VALUE_BYTES:
            return
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name == b"content-encoding":
            self.content_encoding = value.decode("latin-1")
        elif name == b"connection":
            self._is_closing = b"close" in value.lower()

    def on_headers_complete(self) -> None:
        if self._parser is not None:
            self.status = self._parser.get_status_code()
            self.has_head = self.status >= 200
            self._is_closing = self._is_closing or self._parser.get_http_version() != "1.1"

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_complete = True
            self._parser = None
