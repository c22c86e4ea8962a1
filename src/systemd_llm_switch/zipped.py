"""Unpacks gzip that a client or a backend sent, bounded in size. Pure."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

_GZIP_WBITS = 31
_PIECE_BYTES = 1 << 20
_ZIPPED_BYTES = 64 * 1024


class NotGzip(ValueError):
    """The bytes are not one sound member of gzip. The message says why; it may hold foreign text."""


class TooLargeUnzipped(ValueError):
    """The unpacked bytes are more than allowed."""


def unzip(raw: bytes, limit: int, charge: Callable[[int], None] = lambda _: None) -> bytes:
    """The bytes that were compressed, at most `limit`. They must be one member, because many small members would take
    long for few bytes. `charge` is called with the size of each piece before it is kept.

    Raises:
        NotGzip, TooLargeUnzipped, and what `charge` raises.
    """
    found = io.BytesIO()
    member = zlib.decompressobj(_GZIP_WBITS)
    try:
        for start in range(0, len(raw), _ZIPPED_BYTES):
            if member.eof:
                raise NotGzip("something follows its end")
            zipped = raw[start : start + _ZIPPED_BYTES]
            while zipped:
                piece = member.decompress(zipped, _PIECE_BYTES)
                zipped = member.unconsumed_tail
                if found.tell() + len(piece) > limit:
                    raise TooLargeUnzipped
                charge(len(piece))
                found.write(piece)
    except zlib.error as error:
        raise NotGzip(str(error)) from error
    if not member.eof:
        raise NotGzip("its end is missing")
    if member.unused_data:
        raise NotGzip("something follows its end")
    return found.getvalue()
