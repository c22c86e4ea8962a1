"""/metrics: what Prometheus reads, from a real proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.stack import Proxy, Stack, wait_for
from systemd_llm_switch.observe.metrics import Metrics
from systemd_llm_switch.observe.tally import Tally


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a"), "b": stack.standin("b")})


def samples(proxy: Proxy, **more: Any) -> dict[tuple[str, ...], float]:
    """Each sample's value, by its name and its labels' values in the order of their names."""
    answer = proxy.get("/metrics", **more)
    assert answer.status == 200, answer.body
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def wait_for_sample(proxy: Proxy, *key: str) -> float:
    return float(wait_for(lambda: samples(proxy).get(key), what=str(key)))


def test_a_request_is_counted_with_its_times_and_tokens(proxy: Proxy) -> None:
    proxy.chat("a")
    path = "/v1/chat/completions"
    assert wait_for_sample(proxy, "llm_switch_requests_total", "a", path, "200") == 1
    found = samples(proxy)
    for what in ("queue", "switch", "backend"):
        assert found[f"llm_switch_request_{what}_seconds_count", "a"] == 1
    assert found["llm_switch_request_switch_seconds_sum", "a"] > 0
    assert found["llm_switch_tokens_total", "completion", "a"] > 0
    assert found["llm_switch_switches_total", "a", "ok"] == 1
    assert found["llm_switch_switch_seconds_total",] > 0
    assert found["llm_switch_model_loaded", "a"] == 1
    assert found["llm_switch_model_loaded", "b"] == 0
    assert found["llm_switch_in_flight_requests", "a"] == 0
    assert found["llm_switch_waiting_requests",] == 0
    assert found["llm_switch_on_hold",] == 0
    assert found["llm_switch_context_bytes",] == 0
    assert [key for key in found if key[0] == "llm_switch_build_info"]


def test_an_unknown_model_never_becomes_a_label(proxy: Proxy) -> None:
    """Whoever can send requests could else make as many series as they like."""
    proxy.chat("made-up")
    assert wait_for_sample(proxy, "llm_switch_errors_total", "model_not_found") == 1
    assert samples(proxy)["llm_switch_requests_total", "", "/v1/chat/completions", "404"] == 1
    assert b"made-up" not in proxy.get("/metrics").body


def test_a_scrape_loads_nothing(proxy: Proxy) -> None:
    samples(proxy)
    assert {model["state"] for model in proxy.status()["models"].values()} == {"stopped"}


def test_many_requests_are_all_counted(proxy: Proxy) -> None:
    """More than are folded at once."""
    for _ in range(300):
        proxy.chat("a")
    assert wait_for_sample(proxy, "llm_switch_requests_total", "a", "/v1/chat/completions", "200") == 300


def test_open_metrics_is_served_to_who_asks_for_it(proxy: Proxy) -> None:
    answer = proxy.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


SAYS_A_LOT = """\
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    peer, _ = server.accept()
    asked = peer.recv(65536)
    body = b"llamacpp:x 1\\n" * (int(sys.argv[2]) if b"/metrics" in asked else 1)
    peer.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    peer.close()
"""


@pytest.mark.parametrize(("count", "is_shown"), [(1, True), (200_000, False)])
def test_a_model_that_says_too_much_is_left_out(stack: Stack, tmp_path: Path, count: int, is_shown: bool) -> None:
    """Reading its series would take the proxy seconds at each scrape."""
    (tmp_path / "says_a_lot.py").write_text(SAYS_A_LOT)
    unit = stack.unit("m", f"{sys.executable} -S {tmp_path}/says_a_lot.py {stack.port} {count}")
    proxy = stack.run({"m": unit})
    assert proxy.post("/api/load", {"model": "m"}).status == 200
    assert ("llamacpp:x", "m") in samples(proxy) if is_shown else ("llamacpp:x", "m") not in samples(proxy)


def test_a_number_of_tokens_beyond_all_numbers_is_not_counted(proxy: Proxy) -> None:
    """It would be no number for Prometheus, from then on."""
    usage = {"prompt_tokens": 10**400, "completion_tokens": 7}
    raw = json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage})
    proxy.chat("a", standin={"raw": raw})
    assert wait_for_sample(proxy, "llm_switch_tokens_total", "completion", "a") >= 7
    assert proxy.get("/api/requests").json[0]["prompt_tokens"] is None


@pytest.mark.parametrize("text", ["llamacpp:x 1 1e999", "llamacpp:x 1 -1e999 # {a='b'} 1"])
def test_an_odd_time_of_a_models_own_series_is_no_error(text: str) -> None:
    model = {"state": "ready", "in_flight": 0}
    status = {"models": {"m": model}, "waiting": 0, "on_hold": False, "contexts": {"bytes": 0}}
    metrics = Metrics(Tally(), lambda: status, dict, lambda _: text.encode() + b"\n")
    for accept in ("", "application/openmetrics-text"):
        assert b"llm_switch_model_loaded" in metrics.render(accept)[0]


@pytest.mark.parametrize("version", ["x", "1.x", "", "99.0.0"])
def test_a_version_that_cannot_be_read_is_no_error(proxy: Proxy, version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        answer = proxy.get("/metrics", headers={"Accept": f"{kind}; version={version}; escaping=x"})
        assert answer.status == 200
        assert f"version={version};" not in answer.headers["content-type"]
    assert "Traceback" not in proxy.log


@pytest.mark.parametrize(("is_open", "status"), [(False, 401), (True, 200)])
def test_with_keys_metrics_want_one_unless_they_are_open(stack: Stack, is_open: bool, status: int) -> None:
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["sesame"], metrics_open=is_open)
    assert proxy.get("/metrics").status == status
    assert proxy.get("/metrics", headers={"Authorization": "Bearer sesame"}).status == 200


def test_promtool_finds_nothing_to_complain_about(proxy: Proxy) -> None:
    proxy.chat("a", stream=True)
    proxy.chat("made-up")
    wait_for_sample(proxy, "llm_switch_errors_total", "model_not_found")
    text = proxy.get("/metrics").body
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_a_loaded_models_own_series_get_its_name(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"m": real_unit("m", "--metrics"), "silent": stack.standin("silent")})
    proxy.chat("m")
    own = {key: value for key, value in samples(proxy).items() if key[0].startswith("llamacpp:")}
    assert own["llamacpp:prompt_tokens_total", "m"] > 0
    assert {key[1:] for key in own} == {("m",)}
