"""What every search space offers: sampling, text form, graph, canonical form, its operations, bulk counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from op_models.errors import GenotypeError
from op_models.layers import Precision

GenotypeT = TypeVar("GenotypeT")


class DisconnectedNetworkError(GenotypeError):
    """A genotype whose output does not depend on its input: the converter would leave a constant."""

    def __init__(self, genotype: str) -> None:
        super().__init__(genotype, "no path leads from input to output, so the network is a constant")


@dataclass(frozen=True, slots=True)
class CountMatrix:
    """How often each of n networks executes each of k operations.

    ``keys`` are the k operation keys; ``counts`` is [n, k]; ``cold`` (same shape, or None where it is not known) is
    the number of those executions weighted by how cold their data is (0: all in cache, ``counts``: all beyond it);
    ``valid`` is [n] and False where a network is disconnected (its row is 0 and its cost means nothing).
    """

    keys: tuple[str, ...]
    counts: NDArray[np.float32]
    valid: NDArray[np.bool_]
    cold: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: slice | NDArray[Any]) -> CountMatrix:
        cold = None if self.cold is None else self.cold[rows]
        return CountMatrix(self.keys, self.counts[rows], self.valid[rows], cold)

    def row(self, index: int) -> dict[str, int]:
        """Executions of each operation that network ``index`` executes at all."""
        return {key: int(count) for key, count in zip(self.keys, self.counts[index], strict=True) if count}


class Space(Protocol[GenotypeT]):
    """A set of networks, each given by a genotype. ``GenotypeT`` values are hashable and compare by value."""

    @property
    def name(self) -> str:
        """Short name with the settings that decide its networks, such as ``enas-micro-n5-f36``."""
        ...

    def random(self, rng: np.random.Generator) -> GenotypeT:
        """A genotype drawn uniformly; the generator decides it."""
        ...

    def parse(self, text: str) -> GenotypeT:
        """The genotype of its text. Raises :class:`GenotypeError` with the reason."""
        ...

    def format(self, genotype: GenotypeT) -> str:
        """The text of a genotype; :meth:`parse` inverts it."""
        ...

    def canonical(self, genotype: GenotypeT) -> GenotypeT:
        """The representative of all genotypes that give the same converted network."""
        ...

    def graph(self, genotype: GenotypeT, precision: Precision = "float32", seed: int = 0) -> bytes:
        """The network as a ``.tflite`` file. Raises :class:`DisconnectedNetworkError`."""
        ...

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that any network of the space executes."""
        ...

    def count_matrix(self, genotypes: Sequence[GenotypeT], precision: Precision = "float32") -> CountMatrix:
        """Operation counts of many networks without building them."""
        ...


def sample(space: Space[GenotypeT], count: int, seed: int) -> list[GenotypeT]:
    """``count`` different random genotypes (by canonical form); the seed decides them.

    Raises :class:`GenotypeError` where the space seems not to hold that many.
    """
    rng = np.random.default_rng(seed)
    found: dict[GenotypeT, GenotypeT] = {}
    for _ in range(100 * count + 1000):
        if len(found) == count:
            break
        genotype = space.random(rng)
        found.setdefault(space.canonical(genotype), genotype)
    if len(found) < count:
        raise GenotypeError(space.name, f"found only {len(found)} different networks, {count} were asked for")
    return list(found.values())


def collect(rows: Iterable[dict[str, int] | None]) -> CountMatrix:
    """A count matrix from one dictionary a network; None marks a disconnected one."""
    listed = list(rows)
    keys: dict[str, int] = {}
    for row in listed:
        for key in row or ():
            keys.setdefault(key, len(keys))
    table = np.zeros((len(listed), len(keys)), dtype=np.float32)
    for at, row in enumerate(listed):
        for key, count in (row or {}).items():
            table[at, keys[key]] = count
    return CountMatrix(tuple(keys), table, np.array([row is not None for row in listed], dtype=np.bool_))
