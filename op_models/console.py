"""What every command does about its standard streams: closed, full, or left by the reader."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

DONE, NOT_WRITTEN = 0, 2
_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


def with_output(work: Callable[[], int]) -> int:
    """Run a command's work, write its output to the end, and return its exit status.

    A reader that has left (``| head``) is no error; an output that takes no more (a full disk) is one sentence and
    status 2. A stream that was closed before the start swallows what it is given.
    """
    _open_closed_streams()
    status = DONE
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        if error.filename is not None or error.errno not in _REFUSALS:
            raise
        _discard_output()
        print(f"the output cannot be written: {error.strerror or error}", file=sys.stderr)
        return NOT_WRITTEN
    return status


def _open_closed_streams() -> None:
    # Else the next file that is opened gets the number of the closed stream, and what a library prints lands in it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = _opened(sys.stdout, 1), _opened(sys.stderr, 2)


def _opened(stream: TextIO | None, number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False) if stream is None else stream


def _discard_output() -> None:
    """Point standard output nowhere, so that what is left in its buffer raises nothing when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
