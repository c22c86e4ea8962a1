"""Runs a program to its end, with bounds on its time and on how much of its output is read.

Besides this module, only the set-up runs programs.
"""

from __future__ import annotations

import select
import subprocess
import time
from typing import IO

from systemd_llm_switch.waiting import remaining_s

_MAX_OUTPUT_BYTES = 1 << 18
Process = subprocess.Popen[bytes]


class ProgramError(Exception):
    """The program could not be run, or did not end; the message says why."""


def run(*command: str, timeout_s: float, most_bytes: int = _MAX_OUTPUT_BYTES) -> str:
    """What a program writes to its standard output and error; its exit code does not matter. Blocks. What follows
    `most_bytes` is left out.

    Raises:
        ProgramError
    """
    process = start(*command)
    with process:
        try:
            assert process.stdout is not None
            return _read(process.stdout, time.monotonic() + timeout_s, most_bytes).decode("utf-8", "replace")
        except TimeoutError as error:
            raise ProgramError(f"{command[0]} did not end within {timeout_s:g} s") from error
        finally:
            process.kill()  # if it still runs


def start(*command: str) -> Process:
    """A program that runs until it ends or its caller kills it. Its standard output and error are one pipe.

    Raises:
        ProgramError
    """
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise ProgramError(f"{command[0]} is not installed") from error
    except OSError as error:  # no free descriptor for its pipe, for example, or no free process
        raise ProgramError(f"{command[0]} cannot be run: {error.strerror}") from error


def _read(pipe: IO[bytes], deadline: float, most_bytes: int) -> bytes:
    """
    Raises:
        TimeoutError
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    output = b""
    while len(output) < most_bytes:
        if not poll.poll(remaining_s(deadline) * 1000):
            raise TimeoutError
        data = pipe.read1(most_bytes - len(output))  # type: ignore[attr-defined]
        if not data:
            break
        output += data
    return output
