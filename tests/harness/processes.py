"""Looking at processes that a test started, through /proc."""

from __future__ import annotations

import signal
import threading
from pathlib import Path


def interruptible() -> None:
    """Between fork and exec: a shell that starts the tests in the background has them ignore SIGINT, and so their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_alive(pid: int) -> bool:
    """Whether a process still runs or holds files open; a dead one that nobody has waited for is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int | str, thread: int) -> list[int]:
    """Processes that a thread of a process started."""
    try:
        told = Path(f"/proc/{pid}/task/{thread}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in told.split()]


def workers() -> list[int]:
    """Live measuring workers of this process (of its main thread)."""
    thread = threading.main_thread().native_id
    assert thread is not None
    return [pid for pid in children("self", thread) if is_alive(pid) and b"harness.devices.worker" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
