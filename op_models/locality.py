"""Which mixture of contexts a network sees: from its footprint to weights on ``hot``, ``cold`` and ``far``.

The footprint is what passes through the caches between two visits to the same weights: the state of all operations and
the largest set of activations that one operation works on. It is a sum and a maximum over operations, so it follows from
operation counts alone, and a whole search space can be placed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from op_models.arrange import (
    CacheSizes,
    activation_bytes,
    cold_rotation_bytes,
    state_bytes,
)
from op_models.graph import Graph
from op_models.spec import OpSpec

Floats = NDArray[np.float64]

# Up to some private caches, a network's reuse of what it just touched keeps it there. A network of about the size that
# cold op models rotate through costs what they cost; a larger one, whose visits lie further apart, somewhat more, since
# others use the shared cache meanwhile. Chosen on 44 ENAS micro and 24 NAS-Bench-201 networks on a host with a 1 MiB
# private cache.
COLD_BEGINS = 2.6
COLD_COMPLETE = 5.8
COLD_MOST = 1.5
# Kernels that read weights where they lie have little state of their own to lose: a network of any size finds its
# activations as a mixture of hot and cold op models does. Chosen on 15 ENAS micro networks on LiteRT's own kernels.
UNPACKED_SHARE = 0.45
UNPACKED_BEGINS = 1.9
UNPACKED_COMPLETE = 3.0
# A cache shared with other cores holds less than its size of any one network, and a cyclic walk through more than it
# holds misses everywhere. Chosen on MobileNets and ResNet50 at 96x96 on one host with a 32 MiB shared cache.
FAR_BEGINS_FRAC = 0.35
FAR_COMPLETE_FRAC = 0.58


@lru_cache(maxsize=65536)
def _bytes_of(key: str) -> tuple[int, int]:
    spec = OpSpec.from_key(key)
    return state_bytes(spec), activation_bytes(spec.activations) + activation_bytes(spec.outputs)


def footprint_bytes(keys: Iterable[str]) -> int:
    """Footprint of a network that executes these operations (with repetitions)."""
    state, activations = 0, 0
    for key in keys:
        own, moved = _bytes_of(key)
        state += own
        activations = max(activations, moved)
    return state + activations


def graph_footprint_bytes(graph: Graph) -> int:
    """Footprint of a network."""
    return footprint_bytes(group.spec.key for group in graph.groups)


def footprints_bytes(keys: Sequence[str], counts: NDArray[np.floating]) -> Floats:
    """Footprints [n] of networks given by operation counts [n, k] over k keys; equal to :func:`footprint_bytes` of each."""
    pairs = [_bytes_of(key) for key in keys]
    state = np.array([own for own, _ in pairs], np.float64)
    moved = np.array([activations for _, activations in pairs], np.float64)
    total: Floats = counts.astype(np.float64) @ state
    largest = np.zeros(len(counts))
    # From the largest operation down, networks that have it are settled: few passes, no n x k temporary.
    waiting = np.arange(len(counts))
    for column in np.argsort(-moved):
        if waiting.size == 0:
            break
        has = counts[waiting, column] > 0
        largest[waiting[has]] = moved[column]
        waiting = waiting[~has]
    return total + largest


def mixture(footprint: float | Floats, caches: CacheSizes) -> tuple[Floats, Floats]:
    """(share of ``cold`` over ``hot``, share of ``far`` over ``cold``) for footprints in bytes; 0 is none, 1 is all of it.

    The cost of an operation is ``hot + a * (cold - hot) + b * (far - cold)``. Both shares rise with the logarithm of the
    footprint: a from some to several private caches, b over the part of the shared cache at
    which a network that runs again and again begins to push its own weights out.
    """
    size = np.maximum(np.asarray(footprint, np.float64), 1.0)
    begin = max(float(cold_rotation_bytes(caches)), FAR_BEGINS_FRAC * caches.shared_bytes)
    end = max(1.5 * begin, FAR_COMPLETE_FRAC * caches.shared_bytes)
    private = caches.private_bytes
    if not caches.packed:
        return UNPACKED_SHARE * _ramp(size, UNPACKED_BEGINS * private, UNPACKED_COMPLETE * private), _ramp(size, begin, end)
    far = _ramp(size, begin, end)
    cold = _ramp(size, COLD_BEGINS * private, COLD_COMPLETE * private, COLD_MOST)
    return cold - np.maximum(cold - 1.0, 0.0) * far, far


def _ramp(size: Floats, low: float, high: float, most: float = 1.0) -> Floats:
    answer: Floats = np.clip(np.log(size / low) / np.log(high / low), 0.0, most)
    return answer
