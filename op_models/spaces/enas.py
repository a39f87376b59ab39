"""ENAS micro (Pham et al., 2018): cells of five blocks, wired as the public micro child wires them.

Wiring facts, from ``src/cifar10/micro_child.py`` of melodyguan/enas (Apache-2.0; read, not copied),
fixed-architecture path:

* stem: 3x3 convolution to 3F channels, batch norm, no activation; both inputs of the first layer are the stem;
* layers: 3n normal and 2 reduction layers, reductions at positions n and 2n + 1; F doubles at each reduction;
* calibration: the older input, if it is larger in space, goes through ReLU and a factorised reduction; else, if its
  channels differ from F, through ReLU and a 1x1 convolution; the newer input, if its channels differ, through ReLU
  and a 1x1 convolution;
* ``layer_base``: in every layer the newer input then goes through one more ReLU and 1x1 convolution;
* a block adds two results; operations are 0 = 3x3 and 1 = 5x5 separable convolution (ReLU, depthwise, pointwise;
  twice, the stride in the first), 2 = 3x3 average pool, 3 = 3x3 maximum pool, 4 = identity; in a reduction layer
  operations that read a layer input have stride 2, and there an identity is a factorised reduction;
* all values that no block reads, layer inputs included, are concatenated; in a reduction layer an unread input goes
  through a factorised reduction first; there is no convolution behind the concatenation: the next layer's calibration
  is that one;
* end: ReLU, global mean, dense layer (the public code gives it no bias; the published sizes count one, so it has one
  here).

A factorised reduction samples its input twice (at even and at odd positions) with 1x1 average pools of stride 2 and
joins two half-width 1x1 convolutions. It is written here as the strided 1x1 convolutions that this is equal to: a
pool of one pixel followed by a 1x1 convolution is that convolution with stride 2, and the odd positions never reach
the padding that the public code adds. Its batch norm is placed per branch (the same by arithmetic), because it then
folds into the branches.

Batch norms are folded into biases, and every depthwise has a bias, as runtimes count them. With that the cells of the
published comparison have exactly the published sizes (3,431,134 parameters and 546,681,888 MACs; 2,624,374 and
411,776,640).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from op_models.errors import GenotypeError
from op_models.layers import Precision
from op_models.spaces.base import CountMatrix
from op_models.spaces.enas_counts import Table, block_table, equal_blocks, tally_networks
from op_models.spaces.network import Network, keys_of, signatures, tabulate

BLOCKS = 5
OPERATIONS = ("sep3", "sep5", "avg3", "max3", "identity")
SEP3, SEP5, AVG3, MAX3, IDENTITY = range(5)

# One block: (first input, first operation, second input, second operation).
Block = tuple[int, int, int, int]
Cell = tuple[Block, ...]


@dataclass(frozen=True, slots=True, order=True)
class EnasGenotype:
    """A normal and a reduction cell. Values 0 and 1 are the layer's older and newer input, 2 + i is block i."""

    normal: Cell
    reduction: Cell


def loose_ends(cell: Cell) -> tuple[int, ...]:
    """Values (inputs of the layer included) that no block reads, in order."""
    read = {block[0] for block in cell} | {block[2] for block in cell}
    return tuple(value for value in range(2 + len(cell)) if value not in read)


class EnasMicro:
    """Networks of ``3 * depth`` normal and two reduction layers over a square picture."""

    def __init__(self, depth: int = 5, filters: int = 36, classes: int = 10, size: int = 32) -> None:
        if depth < 1 or filters < 2 or filters % 2 or classes < 1 or size < 4 or size % 4:
            raise ValueError("depth and classes must be at least 1, filters even, and the picture a multiple of 4")
        self.depth, self.filters, self.classes, self.size = depth, filters, classes, size

    @property
    def name(self) -> str:
        """Name with the settings."""
        return f"enas-micro-n{self.depth}-f{self.filters}-c{self.classes}-{self.size}px"

    def random(self, rng: np.random.Generator) -> EnasGenotype:
        """Inputs and operations drawn uniformly and independently, among cells without equal blocks.

        (The converter merges two blocks that add the same two values, so such a cell has fewer blocks than it says.)
        """
        return EnasGenotype(_random_cell(rng, 1), _random_cell(rng, 2))

    def parse(self, text: str) -> EnasGenotype:
        """The genotype of 40 numbers in the public code's order: input, operation, input, operation, block by block."""
        parts = text.split()
        if len(parts) != 8 * BLOCKS or not all(part.isdecimal() for part in parts):
            raise GenotypeError(text, f"expected {8 * BLOCKS} numbers, found {len(parts)} words")
        numbers = [int(part) for part in parts]
        cells = []
        for which, start in (("normal", 0), ("reduction", 4 * BLOCKS)):
            blocks = []
            for block in range(BLOCKS):
                a, f, b, g = numbers[start + 4 * block : start + 4 * block + 4]
                if max(a, b) >= 2 + block or max(f, g) >= len(OPERATIONS):
                    raise GenotypeError(
                        text,
                        f"block {block} of the {which} cell reads values 0..{1 + block} through operations 0..4, "
                        f"found {a} {f} {b} {g}",
                    )
                blocks.append((a, f, b, g))
            cells.append(tuple(blocks))
        return EnasGenotype(*cells)

    def format(self, genotype: EnasGenotype) -> str:
        """40 numbers; see :meth:`parse`."""
        return " ".join(str(number) for cell in (genotype.normal, genotype.reduction) for block in cell for number in block)

    def canonical(self, genotype: EnasGenotype) -> EnasGenotype:
        """The least of all genotypes that differ by the order of a block's two halves or of independent blocks.

        Both orders change only the order of channels in the final concatenation and of computation: the converted
        networks execute the same operations.
        """
        return EnasGenotype(canonical_cell(genotype.normal), canonical_cell(genotype.reduction))

    def network(self, genotype: EnasGenotype) -> tuple[Network, int]:
        """The network as an expression graph, and its output."""
        net = Network((self.size, self.size, 3))
        stem = net.conv(net.input, 3 * self.filters, 3)
        older, newer = stem, stem
        filters = self.filters
        for layer in range(3 * self.depth + 2):
            reduces = layer in (self.depth, 2 * self.depth + 1)
            if reduces:
                filters *= 2
            cell = genotype.reduction if reduces else genotype.normal
            older, newer = newer, _layer(net, older, newer, cell, filters, 2 if reduces else 1)
        return net, net.dense(net.mean(net.relu(newer)), self.classes, bias=True)

    def graph(self, genotype: EnasGenotype, precision: Precision = "float32", seed: int = 0) -> bytes:
        """The network as a ``.tflite`` file."""
        net, output = self.network(genotype)
        return net.write(output, precision, seed, self.name)

    def count_matrix(self, genotypes: Sequence[EnasGenotype], precision: Precision = "float32") -> CountMatrix:
        """Operation counts of many genotypes."""
        normal = block_table([genotype.normal for genotype in genotypes])
        reduction = block_table([genotype.reduction for genotype in genotypes])
        tally = tally_networks(normal, reduction, self.depth, self.filters, self.size, self.classes)
        for row in np.flatnonzero(equal_blocks(normal, 1) | equal_blocks(reduction, 2)).tolist():
            net, output = self.network(genotypes[row])
            counted = signatures(net.simplified(output)[0])
            for column in tally.columns.values():
                column[row] = 0
            for signature, count in counted.items():
                tally.add(signature, 0)
                tally.columns[signature][row] = count
        return tabulate(tally.columns, np.ones(len(genotypes), dtype=np.bool_), precision)

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that a network without equal blocks can execute.

        Every wiring of a small set (all numbers of loose ends, all operations everywhere) is counted; how often an
        operation occurs depends on the rest of a cell, whether it can occur does not.
        """
        tally = tally_networks(*covering(), self.depth, self.filters, self.size, self.classes)
        keys = keys_of((signature for signature, counts in tally.columns.items() if counts.any()), precision)
        return frozenset(key for found in keys.values() for key in found)


@lru_cache(maxsize=1)
def covering(seed: int = 20, count: int = 6000) -> tuple[Table, Table]:
    """Normal and reduction cells (block tables) that between them hold every operation of the space.

    A third is uniform; in a third blocks mostly read the block before them (few loose ends), in a third mostly the
    layer's inputs (many). Nothing that a million further genotypes execute was missing.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for stride in (1, 2):
        table = rng.integers(len(OPERATIONS), size=(3 * count, BLOCKS, 4), dtype=np.int8)
        for block in range(BLOCKS):
            for half in (0, 2):
                table[:, block, half] = rng.integers(2 + block, size=3 * count)
        near = rng.random((count, BLOCKS, 2)) < 0.6
        table[:count, :, ::2] = np.where(near, np.arange(1, 1 + BLOCKS)[:, None], table[:count, :, ::2])
        table[:count, 0, ::2] = rng.integers(2, size=(count, 2))
        early = rng.random((count, BLOCKS, 2)) < rng.choice((0.9, 1.0), size=(count, 1, 1))
        swapped = rng.random((count, BLOCKS, 2)) < rng.choice((0.0, 0.1, 0.5), size=(count, 1, 1))
        inputs = rng.integers(2, size=(count, 1, 1), dtype=np.int8) ^ swapped
        table[count : 2 * count, :, ::2] = np.where(early, inputs, table[count : 2 * count, :, ::2])
        tables.append(table[~equal_blocks(table, stride)])
    rows = min(len(table) for table in tables)
    return tables[0][:rows], rng.permutation(tables[1])[:rows]


def _random_cell(rng: np.random.Generator, stride: int) -> Cell:
    while True:
        blocks: list[Block] = []
        for block in range(BLOCKS):
            a, b = rng.integers(2 + block, size=2).tolist()
            f, g = rng.integers(len(OPERATIONS), size=2).tolist()
            blocks.append((a, f, b, g))
        if not equal_blocks(block_table([blocks]), stride)[0]:
            return tuple(blocks)


def canonical_cell(cell: Cell) -> Cell:
    """The least equal cell: halves sorted, then the least of all orders of blocks that keep readers behind the read."""
    return _canonical_cell(tuple(_sorted_block(block) for block in cell))


def _sorted_block(block: Block) -> Block:
    a, f, b, g = block
    return block if (a, f) <= (b, g) else (b, g, a, f)


@lru_cache(maxsize=65536)
def _canonical_cell(cell: Cell) -> Cell:
    best: list[Cell] = []

    def extend(order: list[int], renamed: dict[int, int], done: Cell) -> None:
        if best and done > best[0][: len(done)]:
            return
        if len(order) == len(cell):
            best[:] = [done]
            return
        for block, (a, f, b, g) in enumerate(cell):
            if block not in order and a in renamed and b in renamed:
                moved = _sorted_block((renamed[a], f, renamed[b], g))
                extend([*order, block], {**renamed, 2 + block: 2 + len(order)}, (*done, moved))

    extend([], {0: 0, 1: 1}, ())
    return best[0]


def _layer(net: Network, older: int, newer: int, cell: Cell, filters: int, stride: int) -> int:
    values = list(_calibrated(net, older, newer, filters))
    values[1] = net.conv(net.relu(values[1]), filters, 1)  # layer_base
    for a, f, b, g in cell:
        first = _operation(net, values[a], f, filters, stride if a < 2 else 1)
        second = _operation(net, values[b], g, filters, stride if b < 2 else 1)
        values.append(net.add(first, second))
    ends = [values[end] for end in loose_ends(cell)]
    size = min(net.shape(end)[1] for end in ends)
    return net.concat([end if net.shape(end)[1] == size else _reduced(net, end, filters) for end in ends])


def _calibrated(net: Network, older: int, newer: int, filters: int) -> tuple[int, int]:
    if net.shape(older)[1] != net.shape(newer)[1]:
        older = _reduced(net, net.relu(older), filters)
    elif net.shape(older)[-1] != filters:
        older = net.conv(net.relu(older), filters, 1)
    if net.shape(newer)[-1] != filters:
        newer = net.conv(net.relu(newer), filters, 1)
    return older, newer


def _reduced(net: Network, value: int, filters: int) -> int:
    """Factorised reduction: even and odd positions, half the filters each."""
    even = net.conv(value, filters // 2, 1, 2, "valid")
    odd = net.conv(net.crop(value), filters // 2, 1, 2, "valid")
    return net.concat([even, odd])


def _operation(net: Network, value: int, operation: int, filters: int, stride: int) -> int:
    match operation:
        case 0 | 1:
            kernel = (3, 5)[operation]
            for step in (stride, 1):
                # A separable convolution's pointwise half is written without padding; a 1x1 layer with "same".
                value = net.conv(net.depthwise(net.relu(value), kernel, step), filters, 1, 1, "valid")
            return value
        case 2:
            return net.average(value, 3, stride)
        case 3:
            return net.max(value, 3, stride)
    return value if stride == 1 else _reduced(net, value, filters)
