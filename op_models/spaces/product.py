"""Product spaces: a chain of slots with a free choice in each, such as the MobileNet-like spaces of hardware-aware
search.

Where no choice changes what its neighbours execute, operation counts are a base row plus one row for every (slot,
choice), so a million networks are scored by as many table reads as there are slots, or by one product with a one-hot
matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from op_models.errors import GenotypeError
from op_models.layers import Precision
from op_models.spaces.base import CountMatrix
from op_models.spaces.network import Network, key_counts, signatures

Choices = tuple[int, ...]
Layer = Callable[[Network, int], int]
_ROWS = 1 << 14  # networks scored at a time, so that indices stay in the cache


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the chain: names of its choices, and how each continues a network."""

    names: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class AdditiveCounts:
    """Counts of every network of a product space: ``base`` [k] plus, for each slot, a row of ``parts`` [slots,
    choices, k].

    Rows of choices that a slot does not have are 0 and never read.
    """

    keys: tuple[str, ...]
    base: NDArray[np.float32]
    parts: NDArray[np.float32]

    def matrix(self, choices: NDArray[np.integer]) -> CountMatrix:
        """Counts of networks given as choices [n, slots], through one product with a one-hot matrix."""
        rows, slots = choices.shape
        width = self.parts.shape[1]
        hot = np.zeros((rows, slots * width), dtype=np.float32)
        hot[np.arange(rows)[:, None], np.arange(slots) * width + choices] = 1.0
        counts = hot @ self.parts.reshape(slots * width, -1) + self.base
        return CountMatrix(self.keys, counts, np.ones(rows, dtype=np.bool_))

    def totals(self, choices: NDArray[np.integer], values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Sum over a network's operations of ``values`` [k] (such as a table's latencies), for choices [n, slots].

        Neighbouring slots are read together, so n networks take n * slots / 2 reads of a table that stays in the cache.
        """
        each = self.parts @ values.astype(np.float32)
        width = each.shape[1]
        tables = [each[at, :, None] + each[at + 1] for at in range(0, len(each) - 1, 2)]
        total = np.empty(len(choices), dtype=np.float32)
        base = np.float32(self.base @ values.astype(np.float32))
        for start in range(0, len(choices), _ROWS):
            part = np.ascontiguousarray(choices[start : start + _ROWS].T).astype(np.intp)
            summed = np.full(part.shape[1], base, dtype=np.float32)
            for number, table in enumerate(tables):
                summed += table.ravel().take(part[2 * number] * width + part[2 * number + 1])
            if len(each) % 2:
                summed += each[-1].take(part[-1])
            total[start : start + _ROWS] = summed
        return total


class ProductSpace:
    """Networks made by a stem, one choice for every slot, and an end."""

    def __init__(self, name: str, picture: tuple[int, int, int], stem: Layer, slots: Sequence[Slot], end: Layer) -> None:
        if not slots or any(len(slot.names) != len(slot.layers) or not slot.names for slot in slots):
            raise ValueError("a product space needs slots, and each slot as many names as layers")
        self.name, self.picture, self.stem, self.slots, self.end = name, picture, stem, tuple(slots), end

    def random(self, rng: np.random.Generator) -> Choices:
        """One choice for each slot, uniformly."""
        return tuple(int(rng.integers(len(slot.names))) for slot in self.slots)

    def random_many(self, count: int, seed: int) -> NDArray[np.int8]:
        """Choices [count, slots] of many networks."""
        rng = np.random.default_rng(seed)
        return np.stack([rng.integers(len(slot.names), size=count, dtype=np.int8) for slot in self.slots], axis=1)

    def parse(self, text: str) -> Choices:
        """The genotype of names joined by ``-``."""
        words = text.split("-")
        if len(words) != len(self.slots):
            raise GenotypeError(text, f"expected {len(self.slots)} names joined by '-', found {len(words)}")
        for slot, word in zip(self.slots, words, strict=True):
            if word not in slot.names:
                raise GenotypeError(text, f"{word!r} is none of {', '.join(slot.names)}")
        return tuple(slot.names.index(word) for slot, word in zip(self.slots, words, strict=True))

    def format(self, genotype: Choices) -> str:
        """Names of the choices joined by ``-``."""
        return "-".join(slot.names[choice] for slot, choice in zip(self.slots, genotype, strict=True))

    def canonical(self, genotype: Choices) -> Choices:
        """The genotype itself: different choices are different networks."""
        return genotype

    def network(self, genotype: Choices) -> tuple[Network, int]:
        """The network as an expression graph, and its output. Raises :class:`GenotypeError`."""
        if len(genotype) != len(self.slots) or any(
            not 0 <= choice < len(slot.names) for slot, choice in zip(self.slots, genotype, strict=False)
        ):
            raise GenotypeError(str(genotype), f"expected {len(self.slots)} choices that the slots have")
        net = Network(self.picture)
        value = self.stem(net, net.input)
        for slot, choice in zip(self.slots, genotype, strict=True):
            value = slot.layers[choice](net, value)
        return net, self.end(net, value)

    def graph(self, genotype: Choices, precision: Precision = "float32", seed: int = 0) -> bytes:
        """The network as a ``.tflite`` file."""
        net, output = self.network(genotype)
        return net.write(output, precision, seed, self.name)

    def counted(self, genotype: Choices, precision: Precision) -> dict[str, int]:
        """Operation counts of one network, from its expression graph."""
        net, output = self.network(genotype)
        return key_counts(signatures(net.simplified(output)[0]), precision)

    def additive(self, precision: Precision = "float32") -> AdditiveCounts:
        """Counts of all networks as a sum over slots, found by changing one choice at a time.

        Raises :class:`GenotypeError` where choices of neighbours turn out to interact (a few random networks are
        counted).
        """
        return _additive(self, precision)

    def count_matrix(self, genotypes: Sequence[Choices] | NDArray[np.integer], precision: Precision = "float32") -> CountMatrix:
        """Operation counts of many networks (a sequence, or choices [n, slots])."""
        return self.additive(precision).matrix(np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.slots)))

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that some network executes."""
        additive = self.additive(precision)
        least = additive.base.copy()
        for slot, rows in zip(self.slots, additive.parts, strict=True):
            least += rows[: len(slot.names)].max(axis=0)
        return frozenset(key for key, most in zip(additive.keys, least, strict=True) if most > 0)


@lru_cache(maxsize=16)
def _additive(space: ProductSpace, precision: Precision) -> AdditiveCounts:
    plain = (0,) * len(space.slots)
    base = space.counted(plain, precision)
    changed = {
        (at, choice): space.counted((*plain[:at], choice, *plain[at + 1 :]), precision)
        for at, slot in enumerate(space.slots)
        for choice in range(1, len(slot.names))
    }
    keys = tuple(dict.fromkeys(key for row in (base, *changed.values()) for key in row))
    first = np.array([base.get(key, 0) for key in keys], dtype=np.float32)
    parts = np.zeros((len(space.slots), max(len(slot.names) for slot in space.slots), len(keys)), dtype=np.float32)
    for (at, choice), row in changed.items():
        parts[at, choice] = [row.get(key, 0) for key in keys] - first
    counts = AdditiveCounts(keys, first, parts)
    rng = np.random.default_rng(0)
    for _ in range(4):
        genotype = space.random(rng)
        if counts.matrix(np.array([genotype])).row(0) != space.counted(genotype, precision):
            raise GenotypeError(space.format(genotype), "its operations are not a sum over its choices")
    return counts


# --- a MobileNet-like space ---------------------------------------------------------------------------------------


def inverted_residual(filters: int, kernel: int, expand: int, stride: int) -> Layer:
    """MobileNetV2's block: 1x1 expansion and depthwise with ReLU6, linear 1x1 projection, a sum where shapes agree."""

    def layer(net: Network, value: int) -> int:
        channels = net.shape(value)[-1]
        wide = net.relu(net.conv(value, expand * channels, 1), "relu6")
        middle = net.relu(net.depthwise(wide, kernel, stride), "relu6")
        narrow = net.conv(middle, filters, 1)
        return net.add(value, narrow) if stride == 1 and channels == filters else narrow

    return layer


def _skip(_net: Network, value: int) -> int:
    return value


def mobile_space(size: int = 224, classes: int = 1000, width: float = 1.0) -> ProductSpace:
    """21 inverted residuals in six stages, each with kernel 3, 5 or 7 and expansion 3 or 6, or (not the first of a
    stage) none.

    The stages' filters, strides and depths are those of ProxylessNAS (Cai et al., 2019), whose choices these are.
    """

    def wide(filters: int) -> int:
        return max(8, int(filters * width + 4) // 8 * 8)

    slots = []
    stages = ((24, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 4), (192, 2, 4), (320, 1, 1))
    options = [(kernel, expand) for expand in (3, 6) for kernel in (3, 5, 7)]
    for filters, stride, depth in stages:
        for at in range(depth):
            names = [f"k{kernel}e{expand}" for kernel, expand in options]
            step = stride if at == 0 else 1
            layers = [inverted_residual(wide(filters), kernel, expand, step) for kernel, expand in options]
            if at:
                names.append("skip")
                layers.append(_skip)
            slots.append(Slot(tuple(names), tuple(layers)))

    def stem(net: Network, value: int) -> int:
        value = net.relu(net.conv(value, wide(32), 3, 2), "relu6")
        return net.conv(net.relu(net.depthwise(value, 3), "relu6"), wide(16), 1)

    def end(net: Network, value: int) -> int:
        value = net.relu(net.conv(value, wide(1280), 1), "relu6")
        return net.dense(net.mean(value), classes, bias=True)

    return ProductSpace(f"mobile-w{width:g}-c{classes}-{size}px", (size, size, 3), stem, slots, end)
