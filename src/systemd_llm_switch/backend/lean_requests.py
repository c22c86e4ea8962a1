"""`requests` without the library that guesses the encoding of a body.

That library takes 3 MiB and a tenth of the time that the proxy's imports take, and the proxy reads no body as text.
requests does without it where it is not installed, so it is hidden while requests is imported.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

_GUESSER = "charset_normalizer"


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Within, an import of the module fails (https://docs.python.org/3/reference/import.html#the-module-cache). Does
    nothing if the module is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # that is how it is done
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # requests warns that it has no guesser
            yield
    finally:
        del sys.modules[name]


with _hidden(_GUESSER):
    import requests
    from requests.adapters import HTTPAdapter

__all__ = ["HTTPAdapter", "requests"]
