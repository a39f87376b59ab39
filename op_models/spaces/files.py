"""A set of ``.tflite`` files as a search space: a genotype is a file's path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from op_models.errors import GenotypeError
from op_models.graph import Graph, groups, read
from op_models.layers import Precision
from op_models.spaces.base import CountMatrix, collect


class FileSpace:
    """Networks that already exist as files. A file has the precision it has: ``precision`` changes nothing."""

    def __init__(self, paths: Iterable[str | Path], name: str = "files") -> None:
        self.paths = tuple(str(path) for path in paths)
        if not self.paths:
            raise ValueError("a space of files needs at least one file")
        self.name = name
        self._known = frozenset(self.paths)

    @classmethod
    def of_directory(cls, directory: Path) -> FileSpace:
        """All ``.tflite`` files below a directory, by path. Raises :class:`GenotypeError` if there is none."""
        paths = sorted(directory.rglob("*.tflite"))
        if not paths:
            raise GenotypeError(str(directory), "no .tflite file lies below this directory")
        return cls(paths, directory.name)

    def random(self, rng: np.random.Generator) -> str:
        """One of the files."""
        return self.paths[int(rng.integers(len(self.paths)))]

    def parse(self, text: str) -> str:
        """The path itself. Raises :class:`GenotypeError` for a file that is not of the set."""
        if text not in self._known:
            raise GenotypeError(text, f"the space {self.name} has {len(self.paths)} files, and this is none of them")
        return text

    def format(self, genotype: str) -> str:
        """The path itself."""
        return genotype

    def canonical(self, genotype: str) -> str:
        """The first file of the set with the same content."""
        content = _read(self.parse(genotype)).sha256
        return next(path for path in self.paths if _read(path).sha256 == content)

    def graph(self, genotype: str, precision: Precision = "float32", seed: int = 0) -> bytes:
        """The file's content. Raises :class:`~op_models.errors.ModelFileError`."""
        return _read(self.parse(genotype)).data

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that some file executes."""
        return frozenset(group.spec.key for path in self.paths for group in groups(_read(path)))

    def count_matrix(self, genotypes: Sequence[str], precision: Precision = "float32") -> CountMatrix:
        """Operation counts of the files."""
        return collect(dict(Counter(group.spec.key for group in groups(_read(self.parse(path))))) for path in genotypes)


@lru_cache(maxsize=256)
def _read(path: str) -> Graph:
    return read(Path(path))
