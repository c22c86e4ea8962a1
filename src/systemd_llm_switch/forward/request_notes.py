"""Adds each finished request to the list of the last requests."""

from __future__ import annotations

from systemd_llm_switch.forward.record import Observer, Record
from systemd_llm_switch.observe.observation import Observation
from systemd_llm_switch.observe.requests import entry


def request_notes(observation: Observation) -> Observer:
    """Notes each finished request."""

    def note(record: Record) -> None:
        observation.note_request(
            entry(
                model=record.model,
                path=record.path,
                status=record.status,
                is_stream=record.is_streamed,
                times_ms=record.times_ms,
                restore_ms=record.lease.restore_s * 1000 if record.lease else 0.0,
                first_token_ms=None if record.first_token_s is None else record.first_token_s * 1000,
                usage=record.usage,
                timings=record.timings,
                repairs=len(record.repairs),
                error=None if record.error == "-" else record.error,
            ),
            [repair.kind for repair in record.repairs],
        )

    return note
