"""What may be loaded together, and for how long: vram, ttl, preload, and a card that proves too small."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from support.stack import ROOT, Proxy, Stack, free_port, in_background, run_all, wait_for

CUDA_WORDS = "CUDA error: out of memory"


class Bed:
    """Models on the stand-in backend, each on a port of its own unless one is named."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.models: dict[str, Any] = {}
        self.ports: dict[str, int] = {}

    def add(self, name: str, *options: str, port: int | None = None, **fields: Any) -> str:
        self.ports[name] = port or free_port()
        unit = self.stack.standin(name, *options, port=self.ports[name])
        self.models[name] = {"unit": unit, "llama_url": f"http://127.0.0.1:{self.ports[name]}", **fields}
        return unit

    def run(self, **server: Any) -> Proxy:
        return self.stack.run(self.models, **server)

    def loaded(self) -> set[str]:
        """The models whose unit systemd calls active."""
        return {name for name, model in self.models.items() if self.stack.active_state(model["unit"]) == "active"}

    def pids(self, *names: str) -> list[int]:
        return [self.stack.main_pid(self.models[name]["unit"]) for name in names]

    def running(self, name: str) -> int:
        """How many requests its backend works on."""
        return int(self.stack.seen(self.ports[name])["running"])


def states(proxy: Proxy) -> dict[str, str]:
    return {name: model["state"] for name, model in proxy.status()["models"].items()}


# --- vram -------------------------------------------------------------------------------------------


def test_models_stay_loaded_together_while_their_sum_fits(stack: Stack) -> None:
    bed = Bed(stack)
    for name in "abc":
        bed.add(name, vram=2.5)
    proxy = bed.run(vram=7.5)
    for name in "abc":
        assert proxy.chat(name).text == f"hello from {name}"
    pids = bed.pids("a", "b", "c")
    for name in "cba":
        answer = proxy.chat(name)
        assert (answer.text, answer.timing("switch")) == (f"hello from {name}", 0)
    assert bed.pids("a", "b", "c") == pids
    assert states(proxy) == {"a": "ready", "b": "ready", "c": "ready"}
    assert len(proxy.status()["switches"]) == 3


def test_the_least_recently_used_makes_room_and_nobody_else(stack: Stack) -> None:
    """As few as needed: of three that are idle only one goes, the one that was used longest ago."""
    bed = Bed(stack)
    for name in "abcd":
        bed.add(name, vram=2)
    proxy = bed.run(vram=6)
    for name in ("b", "a", "c", "b"):
        proxy.chat(name)
    assert proxy.chat("d").text == "hello from d"
    assert bed.loaded() == {"b", "c", "d"}
    assert proxy.status()["switches"][-1]["from"] == ["a"]


def test_an_idle_model_makes_room_before_a_busy_one(stack: Stack) -> None:
    """Though the busy one was used longer ago; its request is not touched."""
    bed = Bed(stack)
    for name in "abc":
        bed.add(name, vram=2)
    proxy = bed.run(vram=4)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1.5})) as running:
        wait_for(lambda: bed.running("a") == 1)
        proxy.chat("b")
        assert proxy.chat("c").text == "hello from c"
        assert bed.running("a") == 1
    assert running[0].text == "hello from a"
    assert bed.loaded() == {"a", "c"}


def test_a_large_model_takes_the_place_of_as_many_as_it_needs(stack: Stack) -> None:
    bed = Bed(stack)
    for name, vram in (("a", 2), ("b", 2), ("c", 2), ("large", 4)):
        bed.add(name, vram=vram)
    proxy = bed.run(vram=6)
    for name in ("a", "b", "c", "large"):
        proxy.chat(name)
    assert bed.loaded() == {"c", "large"}
    assert len(proxy.status()["switches"]) == 4  # both went in one switch


def test_one_that_would_not_make_room_enough_stays(stack: Stack) -> None:
    """Though it was used longest ago: the next one must go in any case, and that is enough."""
    bed = Bed(stack)
    for name, vram in (("tiny", 1), ("large", 4), ("other", 4)):
        bed.add(name, vram=vram)
    proxy = bed.run(vram=5)
    for name in ("tiny", "large", "other"):
        proxy.chat(name)
    assert bed.loaded() == {"tiny", "other"}


def test_a_model_that_names_no_vram_needs_the_whole_card(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("a", vram=1)
    bed.add("whole")
    bed.add("b", vram=1)
    proxy = bed.run(vram=24)
    for name, loaded in (("a", {"a"}), ("whole", {"whole"}), ("b", {"b"}), ("a", {"a", "b"})):
        assert proxy.chat(name).text == f"hello from {name}"
        assert bed.loaded() == loaded


def test_without_the_keys_one_model_is_loaded_at_a_time(stack: Stack) -> None:
    """Also where each has a port of its own: a config from before these keys behaves as it did."""
    bed = Bed(stack)
    bed.add("a")
    bed.add("b")
    proxy = bed.run()
    for name in "aba":
        assert proxy.chat(name).text == f"hello from {name}"
        assert bed.loaded() == {name}


def test_a_model_on_the_cpu_and_the_chat_model_leave_each_other_alone(stack: Stack) -> None:
    """`vram: 0` needs no `server.vram`; nor does a switch between chat models touch it."""
    bed = Bed(stack)
    bed.add("chat")
    bed.add("other")
    bed.add("embedder", vram=0)
    proxy = bed.run()
    proxy.chat("chat")
    with in_background(lambda: proxy.chat("chat", standin={"delay_s": 1.5})) as running:
        wait_for(lambda: bed.running("chat") == 1)
        assert proxy.post("/v1/embeddings", {"model": "embedder", "input": "x"}).status == 200
        assert bed.running("chat") == 1
    assert running[0].text == "hello from chat"
    pids = bed.pids("embedder")
    proxy.chat("other")
    assert bed.loaded() == {"other", "embedder"}
    assert bed.pids("embedder") == pids


def test_a_cpu_model_started_by_hand_is_left_alone_by_a_switch(stack: Stack) -> None:
    """It holds nothing that the other model needs, whoever started it."""
    bed = Bed(stack)
    bed.add("chat")
    bed.add("embedder", vram=0)
    proxy = bed.run()
    stack.systemctl("start", bed.models["embedder"]["unit"])
    pids = bed.pids("embedder")
    proxy.chat("chat")
    assert bed.pids("embedder") == pids
    assert proxy.post("/v1/embeddings", {"model": "embedder", "input": "x"}).status == 200
    assert bed.pids("embedder") == pids
    assert bed.loaded() == {"chat", "embedder"}


def test_models_on_one_port_exclude_each_other_and_nobody_else(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("a", vram=2)
    bed.add("whole", port=bed.ports["a"])
    bed.add("embedder", vram=0)
    proxy = bed.run(vram=8)
    proxy.chat("embedder")
    for name in ("a", "whole", "a"):
        assert proxy.chat(name).text == f"hello from {name}"
        assert bed.loaded() == {name, "embedder"}


def test_check_rejects_models_that_could_be_loaded_together_on_one_port(stack: Stack) -> None:
    stack.write_config({"a": {"unit": "a.service", "vram": 2}, "b": {"unit": "b.service", "vram": 2}}, vram=4)
    command = [sys.executable, "-m", "systemd_llm_switch", "--check", "--config", str(stack.config_path)]
    env = {**stack.env, "PYTHONPATH": str(ROOT / "src")}
    checked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "models.b.llama_url: 'b' and 'a' may be loaded together, so each needs its own port" in checked.stderr
    stack.write_config({"a": {"unit": "a.service", "vram": 2}, "b": {"unit": "b.service", "vram": 2}}, vram=3)
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0


def test_a_restarted_proxy_adopts_all_that_are_loaded(stack: Stack) -> None:
    bed = Bed(stack)
    for name in "ab":
        bed.add(name, vram=2)
    first = bed.run(vram=4)
    for name in "ab":
        first.chat(name)
    pids = bed.pids("a", "b")
    assert first.stop() == 0
    second = stack.start_proxy()
    wait_for(lambda: states(second) == {"a": "ready", "b": "ready"})
    assert run_all(*[lambda name=name: second.chat(name).status for name in "ab"]) == [200, 200]
    assert bed.pids("a", "b") == pids


def test_a_changed_vram_counts_for_the_next_switch(stack: Stack) -> None:
    """What runs is not touched by the edit itself."""
    bed = Bed(stack)
    for name in "ab":
        bed.add(name, vram=2)
    proxy = bed.run(vram=4)
    for name in "ab":
        proxy.chat(name)
    bed.models["a"]["vram"] = bed.models["b"]["vram"] = 3
    stack.write_config(bed.models, vram=4)
    assert proxy.chat("a").status == 200
    assert bed.loaded() == {"a", "b"}
    stack.systemctl("stop", bed.models["b"]["unit"])
    assert proxy.chat("b").status == 200
    assert bed.loaded() == {"b"}


def test_a_real_embedder_on_the_cpu_beside_a_real_chat_model(stack: Stack, real_unit: Callable[..., str]) -> None:
    """A chat and its embeddings in turns, as with RAG: each is loaded once."""
    ports = {"chat": free_port(), "embedder": free_port()}
    units = {
        "chat": real_unit("chat", port=ports["chat"]),
        "embedder": real_unit("embedder", "--embedding", "--pooling", "mean", port=ports["embedder"]),
    }
    models = {name: {"unit": unit, "llama_url": f"http://127.0.0.1:{ports[name]}"} for name, unit in units.items()}
    models["embedder"]["vram"] = 0  # type: ignore[assignment]
    proxy = stack.run(models)
    for _ in range(2):
        assert proxy.chat("chat").json["model"] == "chat"
        embedded = proxy.post("/v1/embeddings", {"model": "embedder", "input": ["one", "two"]})
        assert [len(it["embedding"]) > 100 for it in embedded.json["data"]] == [True, True]
    assert [switch["to"] for switch in proxy.status()["switches"]] == ["chat", "embedder"]


# --- ttl --------------------------------------------------------------------------------------------


def test_an_idle_model_is_unloaded_after_its_ttl(stack: Stack) -> None:
    """And only that one: beside it a model without a ttl stays."""
    bed = Bed(stack)
    bed.add("brief", vram=1, ttl=0.3)
    bed.add("lasting", vram=1)
    proxy = bed.run(vram=2)
    proxy.chat("lasting")
    proxy.chat("brief")
    wait_for(lambda: bed.loaded() == {"lasting"})
    wait_for(lambda: states(proxy) == {"brief": "stopped", "lasting": "ready"})
    last = proxy.status()["switches"][-1]
    assert (last["from"], last["to"], last["error"]) == (["brief"], None, None)
    assert proxy.chat("brief").text == "hello from brief"


def test_a_model_is_not_idle_while_a_request_runs(stack: Stack) -> None:
    """Nor does it drain: a second request is served beside the first. The ttl begins at the last one's end."""
    bed = Bed(stack)
    bed.add("a", ttl=2)
    proxy = bed.run()
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})) as first:
        wait_for(lambda: bed.running("a") == 1)
        began = time.monotonic()
        while time.monotonic() - began < 3:  # longer than the ttl
            assert proxy.state("a") == "ready"
            time.sleep(0.1)
        second = proxy.chat("a")
        assert bed.running("a") == 1
        stack.release(bed.ports["a"])
    third = proxy.chat("a")  # long after the load, shortly after the end
    for answer in (*first, second, third):
        assert (answer.text, answer.timing("switch")) == ("hello from a", 0)
    assert len(proxy.status()["switches"]) == 1
    wait_for(lambda: bed.loaded() == set())


def test_each_use_begins_the_ttl_anew(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("a", ttl=3)
    proxy = bed.run()
    proxy.chat("a")
    for _ in range(3):
        time.sleep(1.2)
        assert proxy.chat("a").timing("switch") == 0


def test_an_unload_does_not_wait_for_a_model_that_ended_by_itself_and_was_loaded_again(stack: Stack) -> None:
    bed = Bed(stack)
    unit = bed.add("a", vram=1)
    bed.add("b", vram=1)
    proxy = bed.run(vram=2)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("b", standin={"until_released": True})) as running:
        wait_for(lambda: states(proxy)["b"] == "ready" and bed.running("b") == 1)
        with in_background(lambda: proxy.chat("a", standin={"hang": True})):
            wait_for(lambda: bed.running("a") == 1)
            with in_background(lambda: proxy.post("/api/unload", {}, timeout_s=30)) as unloads:
                wait_for(lambda: states(proxy) == {"a": "draining", "b": "draining"})
                with in_background(lambda: proxy.chat("a")) as again:  # so the loss and the start are one decision
                    wait_for(lambda: proxy.status()["waiting"] == 1)
                    stack.systemctl("kill", "--signal=SIGKILL", unit)
                stack.release(bed.ports["b"])
    assert (again[0].text, running[0].text) == ("hello from a", "hello from b")
    assert unloads[0].status == 200
    assert states(proxy)["a"] == "ready"


def test_a_request_in_the_moment_of_the_idle_unload_is_served(stack: Stack) -> None:
    """Never lost and never stuck, on either side of the boundary and on it: by the model that is still loaded, or
    by the reloaded one."""
    ttl_s, rounds = 0.12, 20
    bed = Bed(stack)
    bed.add("a", ttl=ttl_s)
    proxy = bed.run()
    proxy.chat("a")
    kept = 0
    for round_number in range(rounds):
        # From well before the boundary to well after it, most of the steps within some milliseconds of it.
        offset_s = ttl_s * ((round_number / (rounds - 1)) * 2 - 1) ** 3
        time.sleep(ttl_s + offset_s)
        answers = run_all(lambda: proxy.chat("a"), lambda: proxy.chat("a", stream=True))
        assert [answer.status for answer in answers] == [200, 200], [answer.body for answer in answers]
        assert answers[0].text == "hello from a"
        assert answers[1].events[-1] == "[DONE]"
        kept += answers[0].timing("switch") == 0
    assert 0 < kept < rounds, "the rounds did not reach both sides of the boundary"
    wait_for(lambda: states(proxy) == {"a": "stopped"})
    assert proxy.status()["models"]["a"]["in_flight"] == 0
    assert "Traceback" not in proxy.log


def test_a_ttl_counts_for_an_adopted_model_too(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("a", ttl=0.3)
    stack.systemctl("start", bed.models["a"]["unit"])
    wait_for(lambda: _listens(stack, bed.ports["a"]))
    bed.run()
    wait_for(lambda: bed.loaded() == set())


# --- preload ----------------------------------------------------------------------------------------


def test_preload_loads_at_the_start(stack: Stack) -> None:
    """Several that fit together, by id or alias; the proxy answers meanwhile."""
    bed = Bed(stack)
    bed.add("a", vram=2, aliases=["first"])
    bed.add("slow", "--load-s", "1", vram=2)
    bed.add("other", vram=2)
    proxy = bed.run(vram=6, preload=["first", "slow"])
    assert proxy.get("/v1/models").status == 200
    wait_for(lambda: states(proxy) == {"a": "ready", "slow": "ready", "other": "stopped"})
    assert bed.loaded() == {"a", "slow"}


def test_a_preload_that_fails_is_told_and_stops_neither_the_others_nor_the_proxy(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("broken", "--exit", "3", "--say", "no such file", vram=2)
    bed.add("good", vram=2)
    proxy = bed.run(vram=4, preload=["broken", "good"])
    wait_for(lambda: states(proxy) == {"broken": "failed", "good": "ready"})
    told = [line for line in proxy.log.splitlines() if "preload_failed" in line]
    assert len(told) == 1
    assert "model=broken" in told[0]
    assert "no such file" in told[0]
    assert proxy.chat("good").text == "hello from good"


def test_what_is_loaded_already_is_not_preloaded_anew(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("a")
    first = bed.run(preload=["a"])
    wait_for(lambda: states(first) == {"a": "ready"})
    pids = bed.pids("a")
    first.stop()
    second = stack.start_proxy()
    wait_for(lambda: states(second) == {"a": "ready"})
    assert bed.pids("a") == pids


# --- a card that proves too small -------------------------------------------------------------------


def test_a_start_that_runs_out_of_memory_beside_others_is_tried_once_more_alone(stack: Stack) -> None:
    """The sum in the config was too hopeful: the client gets its answer all the same."""
    bed = Bed(stack)
    bed.add("small", vram=2)
    bed.add("large", "--beside", str(bed.ports["small"]), "--exit", "1", "--say", CUDA_WORDS, vram=2)
    proxy = bed.run(vram=4)
    proxy.chat("small")
    answer = proxy.chat("large")
    assert (answer.status, answer.text) == (200, "hello from large")
    assert bed.loaded() == {"large"}
    _, failed, alone = proxy.status()["switches"]
    assert (failed["from"], failed["to"]) == ([], "large")
    assert CUDA_WORDS in failed["error"]
    assert (alone["from"], alone["to"], alone["error"]) == (["small"], "large", None)
    assert proxy.status()["models"]["large"]["last_error"] is None
    proxy.chat("small")
    assert bed.loaded() == {"small", "large"}
    proxy.post("/api/unload", {"model": "large"})
    assert proxy.chat("large").status == 200
    assert [switch["from"] for switch in proxy.status()["switches"][-2:]] == [[], ["small"]]  # tried beside it anew


def test_alone_it_is_tried_once_only(stack: Stack) -> None:
    """The error has the words of the second start. A retry by the client may help, so nothing forbids it."""
    bed = Bed(stack)
    bed.add("small", vram=2)
    bed.add("huge", "--exit", "1", "--say", CUDA_WORDS, vram=2)
    proxy = bed.run(vram=4)
    proxy.chat("small")
    answer = proxy.chat("huge")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    assert CUDA_WORDS in answer.error["message"]
    assert "x-should-retry" not in answer.headers
    assert [switch["to"] for switch in proxy.status()["switches"]] == ["small", "huge", "huge"]
    assert proxy.chat("small").text == "hello from small"


def test_a_start_that_fails_for_another_reason_evicts_nobody(stack: Stack) -> None:
    bed = Bed(stack)
    bed.add("small", vram=2)
    bed.add("broken", "--exit", "1", "--say", "no such model file", vram=2)
    proxy = bed.run(vram=4)
    proxy.chat("small")
    pids = bed.pids("small")
    assert proxy.chat("broken").status == 503
    assert bed.pids("small") == pids
    assert len(proxy.status()["switches"]) == 2


def test_who_makes_room_for_it_finishes_first(stack: Stack) -> None:
    """The second try waits for the request that runs beside the first."""
    bed = Bed(stack)
    bed.add("small", vram=2)
    bed.add("large", "--beside", str(bed.ports["small"]), "--exit", "1", "--say", CUDA_WORDS, vram=2)
    proxy = bed.run(vram=4, max_wait=0, min_resident=0)
    proxy.chat("small")
    with in_background(lambda: proxy.chat("small", standin={"delay_s": 2})) as running:
        wait_for(lambda: bed.running("small") == 1)
        assert proxy.chat("large").text == "hello from large"
        assert bed.loaded() == {"large"}
    assert running[0].text == "hello from small"


def _listens(stack: Stack, port: int) -> bool:
    try:
        return bool(stack.seen(port))
    except OSError:
        return False
