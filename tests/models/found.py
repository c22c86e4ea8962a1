"""What was found of the one model in another program's file."""

from __future__ import annotations

from systemd_llm_switch.models.foreign import Foreign, Found, NotTaken


def one(found: Found) -> Foreign:
    """The model, which can be taken over."""
    (model,) = found.models
    assert isinstance(model, Foreign), model
    return model


def reason(found: Found) -> str:
    """Why the model cannot be taken over."""
    (model,) = found.models
    assert isinstance(model, NotTaken), model
    return model.reason
