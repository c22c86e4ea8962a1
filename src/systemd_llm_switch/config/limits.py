"""Limits on the size of a config. A larger file is a mistake or an attack, and could block the proxy."""

from __future__ import annotations

MOST_FILE_BYTES = 1_000_000
MOST_MODELS = 1000
MOST_PROBLEMS = 50  # listed in one message
MOST_NODES = 50_000  # YAML values; an alias counts as all the values it refers to
MOST_DEPTH = 50
MOST_PLAIN_CHARACTERS = 1000  # of a scalar without quotes: YAML tries to read it as a number
