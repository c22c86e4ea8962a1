"""`GET /metrics`: the proxy's counts and the loaded models' own series, as Prometheus reads them.

prometheus_client writes the text. It is imported only at the first scrape, so a proxy without Prometheus does not load
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from systemd_llm_switch import __version__
from systemd_llm_switch.observe.tally import BOUNDS_S, Histogram, ModelTally, Tally
from systemd_llm_switch.openai.shapes import Json

if TYPE_CHECKING:
    from prometheus_client import Metric

_HISTOGRAMS: Mapping[str, tuple[str, Callable[[ModelTally], Histogram]]] = {
    "request_queue": ("How long requests waited in the queue.", attrgetter("queue")),
    "request_switch": ("How long requests waited for a switch.", attrgetter("switch")),
    "request_backend": ("How long the backend took for requests.", attrgetter("backend")),
    "time_to_first_token": ("From a request to the first words of its streamed reply.", attrgetter("first_token")),
}
_LOADED = ("ready", "draining")
_CONTEXT_KINDS = ("saved", "restored", "reused")
_OPEN_METRICS = "application/openmetrics-text"
MOST_SERIES_BYTES = 1 << 20  # of one model's own


class Metrics:
    """Thread-safe. `make_status` computes what /api/status shows. `fetch` asks a loaded model's llama-server for its
    series, and returns None if it has none or does not answer in time."""

    def __init__(
        self,
        tally: Tally,
        make_status: Callable[[], Json],
        context_counts: Callable[[], Mapping[tuple[str, str], float]],
        fetch: Callable[[str], bytes | None],
    ) -> None:
        self._tally = tally
        self._context_counts = context_counts
        self._make_status = make_status
        self._fetch = fetch

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics if `accept` asks for it. Blocks while it asks the models."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry()
        registry.register(self)
        # Only this much of what the client says: the library fails on a version that it cannot read, and repeats it.
        kinds = (kind.partition(";")[0].strip() for kind in accept.split(","))
        encode, content_type = choose_encoder(_OPEN_METRICS if _OPEN_METRICS in kinds else "")
        return encode(registry), content_type

    def describe(self) -> list[Metric]:
        """Returns nothing. Without this method, the registry would collect once more to find out the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yields all series, for the registry."""
        self._tally.fold()
        status = self._make_status()
        yield from self._counts()
        yield from self._histograms()
        yield from _gauges(status)
        yield from _contexts(self._context_counts(), status)
        loaded = [name for name, model in status["models"].items() if model["state"] in _LOADED]
        yield from _models_own((name, self._fetch(name)) for name in loaded)

    def _counts(self) -> Iterator[Metric]:
        tally = self._tally
        requests = {(model, path, str(status)): count for (model, path, status), count in tally.requests.copy().items()}
        yield _counter("requests", "Finished requests.", ("model", "route", "status"), requests)
        tokens = {
            (name, kind): count
            for name, model in tally.models.copy().items()
            for kind, count in (("prompt", model.prompt), ("cached", model.cached), ("completion", model.completion))
        }
        yield _counter("tokens", "Tokens of replies, as the backends counted them.", ("model", "kind"), tokens)
        yield _counter(
            "switches", "Switches, by the model that was to be loaded.", ("model", "outcome"), tally.switches.copy()
        )
        yield _counter("switch_seconds", "Time that switches took.", (), {(): tally.switch_s})
        yield _counter("repairs", "Repairs of requests and replies.", ("kind",), _by_one(tally.repairs))
        yield _counter("errors", "Requests that ended with an error.", ("code",), _by_one(tally.errors))

    def _histograms(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        models = sorted(self._tally.models.copy().items())
        for what, (words, of_model) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"llm_switch_{what}_seconds", words, labels=("model",))
            for name, model in models:
                histogram = of_model(model)
                if any(histogram.counts):
                    family.add_metric((name,), _buckets(histogram), histogram.sum_s)
            yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _by_one(counts: dict[str, int]) -> dict[tuple[str, ...], float]:
    return {(name,): count for name, count in counts.copy().items()}


def _counter(name: str, words: str, labels: Iterable[str], values: Mapping[Any, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"llm_switch_{name}", words, labels=tuple(labels))
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, words: str, labels: Iterable[str], values: Mapping[Any, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"llm_switch_{name}", words, labels=tuple(labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauges(status: Json) -> Iterator[Metric]:
    models = status["models"]
    in_flight = {(name,): model["in_flight"] for name, model in models.items()}
    loaded = {(name,): float(model["state"] in _LOADED) for name, model in models.items()}
    yield _gauge("waiting_requests", "Requests that wait for their turn.", (), {(): status["waiting"]})
    yield _gauge("in_flight_requests", "Requests that run at the backends.", ("model",), in_flight)
    yield _gauge("model_loaded", "Whether the model is loaded.", ("model",), loaded)
    yield _gauge("on_hold", "Whether an operator keeps the VRAM free.", (), {(): float(status["on_hold"])})
    yield _gauge("build_info", "The version of the proxy.", ("version",), {(__version__,): 1.0})


def _contexts(counts: Mapping[tuple[str, str], float], status: Json) -> Iterator[Metric]:
    """The series of every model, also those that are 0: Prometheus needs that to compute a rate from the first saved
    context on."""
    models = sorted(status["models"])
    tokens = {(model, kind): counts.get((model, kind), 0) for model in models for kind in _CONTEXT_KINDS}
    seconds = {(model,): counts.get((model, "saved_ms"), 0) / 1000 for model in models}
    yield _counter("context_tokens", "Tokens of saved contexts.", ("model", "kind"), tokens)
    yield _counter("context_seconds_saved", "Reading time that restored contexts saved.", ("model",), seconds)
    yield _gauge("context_bytes", "Bytes of saved contexts on the disk.", (), {(): status["contexts"]["bytes"]})


def _models_own(texts: Iterable[tuple[str, bytes | None]]) -> Iterator[Metric]:
    """The models' own series with a `model` label: one family of each name, with all models' samples."""
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.samples import Sample

    families: dict[str, Metric] = {}
    for model, text in texts:
        try:
            found = list(text_string_to_metric_families((text or b"").decode()))
        except (ValueError, KeyError, IndexError):
            continue  # the reply is not in Prometheus' format
        for family in found:
            if family.name.startswith("llamacpp:"):
                known = families.setdefault(family.name, family)
                samples = [Sample(it.name, {**it.labels, "model": model}, it.value) for it in family.samples]
                known.samples = samples if known is family else [*known.samples, *samples]
    yield from families.values()
