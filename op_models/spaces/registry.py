"""The search spaces that a plan can name, and small sets of networks that hold all their operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from op_models import generate, graph
from op_models.layers import Precision
from op_models.spaces.base import DisconnectedNetworkError, Space
from op_models.spaces.enas import EnasMicro
from op_models.spaces.nas_bench_201 import NasBench201

_COVERING_SEED = 11
_MOST_DRAWN = 60


@dataclass(frozen=True)
class Family:
    """Spaces that a plan names together, such as one cell space at several depths."""

    name: str
    make: Callable[[], tuple[Space[Any], ...]]

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that a network of the family executes."""
        return frozenset().union(*(space.operation_keys(precision) for space in self.make()))

    def covering(self, precision: Precision = "float32") -> Iterator[bytes]:
        """Networks (as ``.tflite`` files) that together hold every operation of the family.

        Random networks first, since operations lifted out of a network have realistic weights and ranges; what they lack
        is generated from its key. The same every time.
        """
        yield from _covering(self, precision)


@lru_cache(maxsize=8)
def _covering(family: Family, precision: Precision) -> tuple[bytes, ...]:
    missing = set(family.operation_keys(precision))
    found: list[bytes] = []
    rng = np.random.default_rng(_COVERING_SEED)
    spaces = family.make()
    for drawn in range(_MOST_DRAWN):
        if not missing:
            break
        space = spaces[drawn % len(spaces)]
        try:
            data = space.graph(space.random(rng), precision, drawn)
        except DisconnectedNetworkError:
            continue
        held = {group.spec.key for group in graph.parse(data, space.name).groups}
        if held & missing:
            found.append(data)
            missing -= held
    found.extend(generate.network(key) for key in sorted(missing))
    return tuple(found)


SPACES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("enas-micro", lambda: tuple(EnasMicro(depth) for depth in (1, 2, 5))),
        Family("nas-bench-201", lambda: (NasBench201(),)),
    )
}
