"""The set-up asks the package by a subprocess, where no type checker looks: its question must fit the config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.stack import ROOT
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.running_proxy import ProxyConfig

pytestmark = pytest.mark.pure


def read(path: Path) -> ProxyConfig:
    env = os.environ | {"LLM_SWITCH_CONFIG": str(path), "PYTHONPATH": str(ROOT / "src")}
    return ProxyConfig.read(Places.of(env), env)


def test_a_valid_config_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("server: {port: 3102, api_keys: [hush]}\nmodels: {a: a.service}\n")
    config = read(path)
    assert (config.path, config.url, config.key) == (path, "http://127.0.0.1:3102", "hush")
    assert (config.models, config.urls) == ({"a": "a.service"}, {"a": "http://127.0.0.1:3004"})
    assert config.warnings == ()


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("surver: {}\nmodels: {a: a.service}\n")
    assert any("surver" in problem for problem in read(path).problems)
