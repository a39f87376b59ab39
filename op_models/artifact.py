"""A content-addressed cache of op models: named by its hash, a file is never stale, only missing or corrupt."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from op_models.errors import CacheError

CACHE_VARIABLE = "ELP_LUT_CACHE"
"""The environment variable that names the cache's directory."""

_DEFAULT_NAME = "elp-lut"
_HASH = re.compile(r"[0-9a-f]{64}\Z")


class MissingArtifactError(CacheError):
    """Nothing is cached under ``sha256``."""

    def __init__(self, *, sha256: str, path: Path) -> None:
        super().__init__(str(path), "no such entry; build it again")
        self.sha256 = sha256


class CorruptArtifactError(CacheError):
    """The bytes under ``sha256`` hash to ``found``; putting the right ones repairs the entry."""

    def __init__(self, *, sha256: str, path: Path, found: str) -> None:
        super().__init__(str(path), f"the entry holds other bytes (hash {found[:12]}); build it again")
        self.sha256, self.found = sha256, found


class ArtifactCache:
    """Bytes by their sha256 under one directory; any number of processes may use it at once.

    A file comes under its name complete, by rename, and two writers of one name write the same bytes, so no lock is
    needed. Nothing is synced: what a power failure spoils is noticed on reading and built again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its sha256; a corrupt entry is rewritten. Raises CacheError."""
        sha256 = hashlib.sha256(data).hexdigest()
        place = self._place(sha256)
        if _read(place) != data:
            _write(place, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """The bytes of a hash. Raises MissingArtifactError, CorruptArtifactError, CacheError."""
        place = self._place(sha256)
        data = _read(place)
        if data is None:
            raise MissingArtifactError(sha256=sha256, path=place)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise CorruptArtifactError(sha256=sha256, path=place, found=found)
        return data

    def path(self, sha256: str) -> Path:
        """Where the bytes of a hash lie, after they were checked. Raises as :meth:`get`."""
        self.get(sha256)
        return self._place(sha256)

    def has(self, sha256: str) -> bool:
        """Whether :meth:`get` would give the bytes."""
        try:
            self.get(sha256)
        except (MissingArtifactError, CorruptArtifactError):
            return False
        return True

    def tag(self, recipe: str, sha256: str) -> None:
        """Remember what a slow ``recipe`` (any text that fixes the result, such as a conversion's inputs) made."""
        _write(self._tag_place(recipe), (self._checked(sha256) + "\n").encode())

    def find(self, recipe: str) -> str | None:
        """The sha256 that a recipe made, where it is remembered and its bytes are there and whole."""
        data = _read(self._tag_place(recipe))
        sha256 = data.decode("ascii", "replace").strip() if data is not None else ""
        return sha256 if _HASH.match(sha256) is not None and self.has(sha256) else None

    def _place(self, sha256: str) -> Path:
        name = self._checked(sha256)
        return self.directory / name[:2] / f"{name[2:]}.tflite"

    def _tag_place(self, recipe: str) -> Path:
        return self.directory / "recipes" / hashlib.sha256(recipe.encode()).hexdigest()

    def _checked(self, sha256: str) -> str:
        # The hash becomes a path: nothing else than a hash may.
        if _HASH.match(sha256) is None:
            raise ValueError(f"{sha256!r} is not a sha256 in lower-case hexadecimal")
        return sha256


def default_cache() -> ArtifactCache:
    """The cache that ELP_LUT_CACHE names, or the user's own."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return ArtifactCache(Path(named).expanduser() / "artifacts")
    import platformdirs  # only who has no directory of their own pays for it

    return ArtifactCache(platformdirs.user_cache_path(_DEFAULT_NAME, appauthor=False) / "artifacts")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(str(path), f"cannot read it: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data`` at once; every writer has a temporary file of its own."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        temporary.chmod(0o644)  # mkstemp makes it private, but a worker of another user may read the cache
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise CacheError(str(path), f"cannot write it: {error.strerror or error}") from error
