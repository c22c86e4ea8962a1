"""A real Prometheus reads a real proxy under load: every query of the dashboard and of the alerts finds series."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.stack import ROOT, Proxy, Stack, free_port, wait_for

DASHBOARD = json.loads((ROOT / "deploy/grafana/llm-switch.json").read_text())
RULES = ROOT / "deploy/prometheus"
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


class Prometheus:
    """Answers queries."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series; AssertionError where Prometheus does not understand the expression."""
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def wait_for_scrape(self) -> None:
        """Until Prometheus has read the metrics as they are now."""
        now = time.time()
        wait_for(lambda: self.query(f'timestamp(up{{job="llm-switch"}}) > {now}'), what="a scrape")


@dataclass(frozen=True)
class Load:
    """Work of every kind that a series is there for."""

    proxy: Proxy

    def run(self) -> None:
        self.proxy.chat("a")
        self.proxy.chat("b", stream=True)
        self.proxy.chat("failing")
        self.proxy.post("/v1/chat/completions", broken_history("a"))


@pytest.fixture(scope="module")
def load(module_stack: Stack) -> Load:
    stack = module_stack
    models = {"a": stack.standin("a"), "b": stack.standin("b"), "failing": stack.unit("failing", "/bin/false")}
    return Load(stack.run(models, streaming="live"))


def broken_history(model: str) -> dict[str, Any]:
    """A conversation that the proxy repairs before it sends it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    return {"model": model, "messages": messages}


@pytest.fixture(scope="module")
def prometheus(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(RULES / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{load.proxy.port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with Path(folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        running = Prometheus(port)
        wait_for(running.is_ready, timeout_s=60, what=(folder / "log").read_text()[-500:])
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_of_the_dashboard_finds_series(prometheus: Prometheus, load: Load, expression: str) -> None:
    query = expression.replace("$__rate_interval", "1m")  # as Grafana would send it

    def finds_series() -> bool:
        load.run()
        prometheus.wait_for_scrape()
        return bool(prometheus.query(query))

    wait_for(finds_series, what=query)


@pytest.mark.systemd  # pure tests run without Debian's prometheus
def test_the_rules_alert_as_they_say() -> None:
    """promtool runs alerts_test.yml: when each alert fires, and when not."""
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    rules = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"][0]["rules"]
    (tests,) = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    assert {rule["alert"] for rule in rules} == {test["alertname"] for test in tests["alert_rule_test"]}


def test_prometheus_knows_the_alerts(prometheus: Prometheus) -> None:
    assert wait_for(lambda: prometheus.query('up{job="llm-switch"} == 1'), timeout_s=60)
