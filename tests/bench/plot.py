"""The figures that matter most as one SVG: bars with the quartiles on them, one small panel each."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from bench.contenders import ALONE, OURS
from bench.figures import Figures, Measurement
from bench.report import number

# Measurement, column, what it is; less is better unless it says "more".
PANELS = (
    ("latency-1k", "added p50", "Added latency, 1 KB, p50 (ms)"),
    ("latency-1k", "added p99", "Added latency, 1 KB, p99 (ms)"),
    ("latency-200k", "added p50", "Added latency, 200 KB, p50 (ms)"),
    ("latency-real", "added p50", "Added latency, real model, p50 (ms)"),
    ("throughput", "1", "Requests/s, 1 client (more is better)"),
    ("throughput", "32", "Requests/s, 32 clients (more is better)"),
    ("switch-real", "beyond", "A switch, beyond doing it by hand (ms)"),
    ("switch-fast", "beyond", "The same, stand-in (ms)"),
    ("stream-real", "added", "Added to the first token (ms)"),
    ("disconnect", "plain", "Backend goes on after a drop (s)"),
    ("parallel-32", "worst (ms)", "/v1/models under 32 requests, worst (ms)"),
    ("footprint", "memory idle, model loaded (MiB)", "Memory, idle (MiB)"),
)
_WIDTH, _COLUMNS, _LABEL, _BAR, _GAP, _TITLE = 960, 2, 150, 16, 6, 30
_COLOURS = ("#0b6e4f", "#c8553d", "#4f5d75", "#d4a017", "#6a4c93")
_ALONE_COLOUR = "#b9bec7"
_STYLE = "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-weight:600}.w{stroke:#24292f;stroke-width:1.2}"


def as_svg(figures: Figures) -> str:
    """The panels for which there are figures."""
    found = [
        (figures.measurements[name], column, title) for name, column, title in PANELS if name in figures.measurements
    ]
    found = [(measurement, column, title) for measurement, column, title in found if column in measurement.columns]
    names = list(dict.fromkeys(name for measurement, _, _ in found for name in measurement.rows if name != ALONE))
    names.sort(key=lambda name: name != OURS)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)} | {ALONE: _ALONE_COLOUR}
    height_each = _TITLE + (max((len(each[0].rows) for each in found), default=0)) * (_BAR + _GAP) + 14
    height = height_each * -(-len(found) // _COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}">',
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for position, (measurement, column, title) in enumerate(found):
        row, place = divmod(position, _COLUMNS)
        parts.append(f'<g transform="translate({12 + place * _WIDTH // _COLUMNS},{row * height_each})">')
        parts += _panel(measurement, column, title, colours)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(measurement: Measurement, column: str, title: str, colours: dict[str, str]) -> Iterator[str]:
    spreads = [(name, measurement.spread(name, column)) for name in measurement.rows]
    known = [(name, spread) for name, spread in spreads if spread is not None]
    room = _WIDTH // _COLUMNS - _LABEL - 80
    scale = room / (max(spread.high for _, spread in known) or 1)
    yield f'<text class="t" x="0" y="20">{escape(title)}</text>'
    for line, (name, spread) in enumerate(known):
        y = _TITLE + line * (_BAR + _GAP)
        low, middle, high = (max(0.0, value) * scale for value in (spread.low, spread.median, spread.high))
        yield f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
        size = f'width="{max(middle, 1):.1f}" height="{_BAR}"'
        yield f'<rect x="{_LABEL}" y="{y}" {size} fill="{colours.get(name, _ALONE_COLOUR)}"/>'
        yield f'<path class="w" d="M{_LABEL + low:.1f} {y + _BAR / 2}H{_LABEL + high:.1f}"/>'
        yield f'<text x="{_LABEL + max(middle, high) + 6:.1f}" y="{y + 12}">{number(spread.median)}</text>'
