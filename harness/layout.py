"""What lies where in a run directory, and what is not of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from harness.errors import storage_error
from harness.files import FileLayer, is_temporary

PLAN, MANIFEST, JOBS, JOURNAL = "plan.toml", "manifest.json", "jobs.json", "journal.jsonl"
RAW, ATTACHED, DERIVED = "raw", "attached", "derived"
CHECKSUMS, LOCK = "CHECKSUMS", "LOCK"

Condition = Literal["absent", "empty", "half-made", "run", "finished", "foreign"]
_BEFORE_JOURNAL = frozenset({LOCK, PLAN, MANIFEST, JOBS, RAW, ATTACHED, DERIVED})


def raw_path(block: str, number: int) -> str:
    """Where a round lies, relative to the run directory.

    >>> raw_path("b03", 7)
    'raw/b03/00007.npy'
    """
    return f"{RAW}/{block}/{number:05d}.npy"


def condition(path: Path) -> Condition:
    """What is at ``path``; a "half-made" directory may be given to :func:`create` again.

    Raises StorageError.
    """
    try:
        if not path.is_dir():
            return "foreign" if os.path.lexists(path) else "absent"
        names = {item.name for item in path.iterdir()}
        if JOURNAL in names:
            return "finished" if CHECKSUMS in names else "run"
        if not names:
            return "empty"
        return "half-made" if stranger(path) is None else "foreign"
    except OSError as error:
        raise storage_error(path, error, doing="look into") from error


def recordings(path: Path, kind: str, files: FileLayer) -> list[Path]:
    """Complete files under raw/ or attached/, whatever the journal says of them."""
    found = files.listing(path / kind)
    if kind == RAW:
        found = [item for block in found for item in files.listing(block)]
    return [item for item in found if not is_temporary(item)]


def sweep(path: Path, files: FileLayer) -> None:
    """Remove what writes left behind that never finished."""
    raw = files.listing(path / RAW)
    for directory in (path, path / ATTACHED, path / DERIVED, *raw):
        for item in files.listing(directory):
            if is_temporary(item):
                files.remove(item)


def stranger(path: Path) -> str | None:
    """Something in a directory without a journal that :func:`create` did not put there."""
    for item in sorted(path.iterdir()):
        if item.name in (RAW, ATTACHED, DERIVED):
            inside = next((found for found in sorted(item.rglob("*"))), None) if item.is_dir() else item
            if inside is not None:
                return inside.relative_to(path).as_posix()
        elif item.name not in _BEFORE_JOURNAL and not is_temporary(item):
            return item.name
    return None


def checksums(path: Path, files: FileLayer) -> bytes:
    """What CHECKSUMS should hold, in the format of ``sha256sum``: everything but derived/, LOCK and itself."""
    found: list[str] = []
    pending = [item for item in files.listing(path) if item.name not in (DERIVED, LOCK, CHECKSUMS)]
    while pending:
        item = pending.pop()
        if item.is_dir() and not item.is_symlink():
            pending.extend(files.listing(item))
        elif not is_temporary(item):
            found.append(f"{hashlib.sha256(files.read(item)).hexdigest()}  {item.relative_to(path).as_posix()}\n")
    return "".join(sorted(found, key=lambda line: line[66:])).encode()
