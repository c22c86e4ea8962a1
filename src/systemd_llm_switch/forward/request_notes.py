"""Adds each finished request to the list of the last requests."""

from __future__ import annotations

import time

from systemd_llm_switch.forward.record import Observer, Record
from systemd_llm_switch.observe.observation import Observation
from systemd_llm_switch.observe.requests import Finished, cached_tokens, token_count, token_rate


def request_notes(observation: Observation) -> Observer:
    """Notes each finished request."""

    def note(record: Record) -> None:
        usage, timings = record.usage, record.timings
        observation.note_request(
            Finished(
                at=time.time(),
                model=record.model,
                path=record.path,
                status=record.status,
                is_stream=record.is_streamed,
                times_ms=record.times_ms,
                restore_ms=record.lease.restore_s * 1000 if record.lease else 0.0,
                first_token_ms=None if record.first_token_s is None else record.first_token_s * 1000,
                prompt_tokens=token_count(usage.get("prompt_tokens")),
                cached_tokens=cached_tokens(usage, timings),
                completion_tokens=token_count(usage.get("completion_tokens")),
                tokens_per_s=token_rate(timings.get("predicted_per_second")),
                repairs=tuple([repair.kind for repair in record.repairs]),
                error=None if record.error == "-" else record.error,
                client=record.client,
            )
        )

    return note
