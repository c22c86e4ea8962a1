"""Who waits for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from systemd_llm_switch.setup.lock import only_one
from systemd_llm_switch.setup.places import Places, SetupError


def test_users_of_one_clone_add_models_at_once(tmp_path: Path) -> None:
    mine, theirs = (Places.of({"HOME": str(tmp_path / name)}) for name in ("me", "you"))
    with only_one(mine, uses_clone=False), only_one(theirs, uses_clone=False):
        pass
    with only_one(mine, uses_clone=False), pytest.raises(SetupError, match="another"), only_one(mine, uses_clone=False):
        pass
