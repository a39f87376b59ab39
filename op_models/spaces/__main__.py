"""Draws networks from a search space, or lists the operations that it can ask for: ``python -m op_models.spaces SPACE``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from op_models.console import with_output
from op_models.errors import OpModelError
from op_models.layers import PRECISIONS, Precision
from op_models.spaces.base import DisconnectedNetworkError
from op_models.spaces.registry import SPACES

DONE, BAD_REQUEST = 0, 2


def drawn(space: str, count: int, seed: int, precision: Precision) -> Iterator[tuple[str, bytes]]:
    """(name, ``.tflite`` file) of random networks of a space, each depth in turn; the seed decides them."""
    rng = np.random.default_rng(seed)
    members = SPACES[space].make()
    made = 0
    while made < count:
        member = members[made % len(members)]
        try:
            data = member.graph(member.random(rng), precision, seed + made)
        except DisconnectedNetworkError:
            continue
        yield f"{member.name}-{precision}-{made:03d}.tflite", data
        made += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m op_models.spaces",
        description="Draw random networks of a search space as .tflite files, or list the operations that it can ask for.",
        epilog="exit status: 0 done, 2 the request is wrong.",
    )
    parser.add_argument("space", choices=sorted(SPACES))
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory to write networks into; without it, list operations")
    parser.add_argument("--count", type=int, default=3, metavar="N", help="networks to draw (3)")
    parser.add_argument("--seed", type=int, default=0, help="draws the networks and their weights (0)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.count <= 100_000 or chosen.seed < 0:
        parser.error("--count must lie in 1..100000 and --seed must not be negative")
    return with_output(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    try:
        if chosen.out is None:
            print("\n".join(sorted(SPACES[chosen.space].operation_keys(chosen.precision))))
            return DONE
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, data in drawn(chosen.space, chosen.count, chosen.seed, chosen.precision):
            path = chosen.out / name
            path.write_bytes(data)
            print(path)
    except OpModelError as error:
        print(error, file=sys.stderr)
        return BAD_REQUEST
    except OSError as error:
        if chosen.out is None or isinstance(error, BrokenPipeError):
            raise
        print(f"{error.filename or chosen.out}: {error.strerror or error}", file=sys.stderr)
        return BAD_REQUEST
    print(f"next: python -m luts.predict {shlex.quote(str(chosen.out))}/*.tflite --lut LUT", file=sys.stderr)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
