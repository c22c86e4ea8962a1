"""The kernel's answer to the question who listens."""

from __future__ import annotations

import socket
import struct
from itertools import islice

import pytest

from systemd_llm_switch.systemd.listeners import groups_in, listening_sockets

CGROUP_ID = 21


def message(attributes: bytes, kind: int = 20) -> bytes:
    content = bytes(72) + attributes
    return struct.pack("=IHHII", 16 + len(content), kind, 0, 0, 0) + content


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=2H", 4 + len(value), kind) + value + bytes(-len(value) % 4)


END = struct.pack("=IHHII", 16, 3, 0, 0, 0)


def test_every_socket_of_the_answer_is_found_up_to_its_end() -> None:
    one = message(attribute(5, b"odd") + attribute(CGROUP_ID, struct.pack("=Q", 1 << 40)))
    other = message(attribute(CGROUP_ID, struct.pack("=Q", 7)))
    assert list(groups_in([one + other, other + END + one, one])) == [1 << 40, 7, 7]


@pytest.mark.parametrize("length", range(4))
def test_a_length_that_leads_nowhere_ends_the_answer(length: int) -> None:
    """Read again and again, it would never end."""
    with pytest.raises(struct.error):
        list(islice(groups_in([message(struct.pack("=2H", length, CGROUP_ID))]), 10))


def test_the_kernel_knows_a_socket_of_ours_and_nobody_elses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert len(listening_sockets(port)) == 1
    assert listening_sockets(port) == frozenset()
