"""What the commands of this package share: exit statuses, one sentence for an error, plain tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from luts.errors import LutError
from op_models.console import with_output
from op_models.errors import OpModelError

if TYPE_CHECKING:
    import argparse

DISTRIBUTION = "elp-lut"
DONE, FOUND_WRONG, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130


def guarded(work: Callable[[], int], *, also: tuple[type[Exception], ...] = ()) -> int:
    """Run a command's work; an expected error becomes one sentence on stderr and exit status 2.

    ``also`` are further roots of expected errors; one that has an ``exit_code`` decides the status.
    """
    expected: tuple[type[Exception], ...] = (LutError, OpModelError, *also)

    def told() -> int:
        try:
            return work()
        except expected as error:
            print(f"error: {error}", file=sys.stderr)
            return int(getattr(error, "exit_code", BAD_REQUEST))
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED

    return with_output(told)


def table_text(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: int = 0) -> str:
    """A plain table, columns two spaces apart; the first ``right`` columns are flush right.

    >>> print(table_text(("us", "operation"), [("1.5", "ADD"), ("12.0", "MUL")], right=1))
      us  operation
     1.5  ADD
    12.0  MUL
    """
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [
            cell.rjust(width) if column < right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def program() -> str:
    """Name and version of this program, for what it writes."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return f"{DISTRIBUTION} (not installed)"


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Options that pick one setting of a table that holds several."""
    parser.add_argument("--delegate", help="which delegate's entries to use, where the table has several")
    parser.add_argument("--threads", type=int, help="entries of how many threads to use")
    parser.add_argument("--core-cluster", metavar="CLUSTER", help="which core cluster's entries to use")
