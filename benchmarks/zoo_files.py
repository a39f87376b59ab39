"""Prepares the zoo of the benchmark: each file twice, to lift operations from and, with other weights, to be predicted.

``python -m benchmarks.zoo_files --out DIR`` fills ``DIR/lift`` and ``DIR/unseen`` and writes ``DIR/zoo.json``. Paths
go to stdout as the files become ready, the talk to stderr. What the cache has is not converted again, so a stopped run
goes on where it was. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path

from op_models import zoo
from op_models.errors import OpModelError

LIFT_SEED, UNSEEN_SEED = 0, 1

# The benchmark's networks, cheapest to convert first.
_NETWORKS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "resnet50",
    "efficientnet_b0",
    "inception_v3",
    "densenet121",
    "nasnet_mobile",
)
# What is prepared first serves first: ranks of the input sizes (0 is the smallest), and the precisions at those.
_PASSES = (((0,), ("float32", "float16", "int8")), ((1, 2), ("float32",)), ((1,), ("int8",)))


@dataclass(frozen=True, slots=True)
class ZooFile:
    """One file of the benchmark. ``size`` is the edge of the input image in pixels."""

    network: str
    size: int
    precision: str

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"{self.network}-{self.size}-{self.precision}"


def zoo_files() -> Iterator[ZooFile]:
    """The benchmark's files in the order of preparing: 27 of float32, 9 of float16 and 18 of int8."""
    for ranks, precisions in _PASSES:
        for rank, network in product(ranks, _NETWORKS):
            for precision in precisions:
                yield ZooFile(network, zoo.NETWORKS[network].sizes[rank], precision)


def prepare(
    out: Path,
    chosen: Sequence[ZooFile],
    *,
    cache: Path | None = None,
    seeds: tuple[int, int] = (LIFT_SEED, UNSEEN_SEED),
) -> dict[str, str]:
    """Put both instances of every chosen file under ``out``; returns the reasons of those that failed, by name."""
    failed: dict[str, str] = {}
    ready: list[dict[str, object]] = []
    begin = time.monotonic()
    done = 0
    for (network, size), group in groupby(chosen, key=lambda file: (file.network, file.size)):
        files = list(group)
        done += len(files)
        names = " ".join(file.name for file in files)
        print(f"[{done}/{len(chosen)}, {time.monotonic() - begin:.0f} s] {names}", file=sys.stderr, flush=True)
        try:
            instances = [zoo.files(network, size, [file.precision for file in files], seed=seed, cache=cache) for seed in seeds]
        except OpModelError as error:
            print(f"    {error}", file=sys.stderr, flush=True)
            failed |= {file.name: str(error) for file in files}
            continue
        for file in files:
            entry: dict[str, object] = {"name": file.name, **asdict(file)}
            for role, seed, instance in zip(("lift", "unseen"), seeds, instances, strict=True):
                path = out / role / f"{file.name}.tflite"
                _place(instance[file.precision], path)
                content = path.read_bytes()
                entry[role] = {
                    "path": str(path.relative_to(out)),
                    "seed": seed,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size_bytes": len(content),
                }
                print(path, flush=True)
            ready.append(entry)
        _write_index(out, ready, failed)
    return failed


def _place(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.link(source, aside)
    except OSError:  # another file system
        shutil.copyfile(source, aside)
    aside.replace(path)


def _write_index(out: Path, ready: list[dict[str, object]], failed: dict[str, str]) -> None:
    index = {"format": "zoo-files", "version": 1, "files": ready, "failed": failed}
    aside = out / ".zoo.json"
    aside.write_text(json.dumps(index, indent=1) + "\n")
    aside.replace(out / "zoo.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit 0 all files are there, 1 some failed, 2 the request is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo_files", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for lift/, unseen/ and zoo.json")
    parser.add_argument("--cache", type=Path, help="where conversions are kept (default: the user's cache directory)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="files whose name contains TEXT")
    options = parser.parse_args(arguments)
    chosen = [file for file in zoo_files() if not options.only or any(text in file.name for text in options.only)]
    if not chosen:
        print(f"no file's name contains {' or '.join(options.only)}", file=sys.stderr)
        return 2
    try:
        failed = prepare(options.out, chosen, cache=options.cache)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{len(chosen) - len(failed)} of {len(chosen)} files twice in {options.out}/zoo.json", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
