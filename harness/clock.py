"""Time as an argument: a monotonic clock in microseconds, real or virtual."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock; only differences mean something."""

    def now_us(self) -> int:
        """Microseconds since an unspecified moment, never decreasing."""
        ...

    def sleep_us(self, duration_us: int) -> None:
        """Let at least ``duration_us`` pass; ValueError where it is negative."""
        ...


class SystemClock:
    """This computer's monotonic clock."""

    def now_us(self) -> int:
        return time.monotonic_ns() // 1_000

    def sleep_us(self, duration_us: int) -> None:
        _refuse_negative(duration_us)
        # time.sleep may return late but, since Python 3.5, never early.
        time.sleep(duration_us / 1e6)


class VirtualClock:
    """A clock that moves only when somebody sleeps on it.

    >>> clock = VirtualClock(start_us=5)
    >>> clock.sleep_us(10)
    >>> clock.now_us()
    15
    """

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def sleep_us(self, duration_us: int) -> None:
        _refuse_negative(duration_us)
        self._now_us += duration_us


def unix_now_us() -> int:
    """Microseconds since 1970 in UTC: when something happened, not how long it took (it may step)."""
    return time.time_ns() // 1_000


def _refuse_negative(duration_us: int) -> None:
    if duration_us < 0:
        raise ValueError(f"cannot sleep for {duration_us} us")
