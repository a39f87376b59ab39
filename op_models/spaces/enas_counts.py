"""Operation counts of many ENAS micro networks at once, by array arithmetic over their block tables.

A network's operations are those inside its cells, times how often each cell stands in a stage, plus what happens
between layers (calibration, ReLUs on layer outputs), which depends on how many values each cell joins. Arrays are
[n], one entry a genotype.

The arithmetic takes every block of a cell for a value of its own. Where two blocks compute the same thing the
converter merges them; :func:`equal_blocks` finds those genotypes, which are counted one by one from their expression
graph instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_models.spaces.network import Signature

Table = NDArray[np.int8]  # [n, blocks, 4]: first input, first operation, second input, second operation
Counts = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]
_SEPS = ((0, 3), (1, 5))  # operation number, kernel
_AVERAGE, _MAX, _IDENTITY = 2, 3, 4
_WEIGHTED = 64  # operand codes from here on stand for values of their own


class Tally:
    """Counts by signature; only what may occur is kept."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[Signature, Counts] = {}

    def add(self, signature: Signature, counts: Counts | Flags | int) -> None:
        """Add ``counts`` (an array [n], or one number for all)."""
        column = self.columns.get(signature)
        if column is None:
            column = self.columns[signature] = np.zeros(self.rows, dtype=np.int32)
        column += counts

    def split(self, signature: Signature, counts: Counts | Flags | int, fused: Flags) -> None:
        """The same where ``fused`` says whether a ReLU goes in."""
        self.add(replace(signature, act="relu"), counts * fused)
        self.add(signature, counts * ~fused)


def _codes(table: Table, stride: int) -> Iterator[tuple[Counts, Counts]]:
    """For each block its two operands as numbers, equal numbers meaning equal values (if all blocks differ)."""
    for block in range(table.shape[1]):
        pair = []
        for half in (0, 1):
            value, op = table[:, block, 2 * half].astype(np.int16), table[:, block, 2 * half + 1]
            own = (op < _AVERAGE) | ((op == _IDENTITY) & (value < 2) & (stride == 2))
            code = np.where(op == _AVERAGE, 16 + value, np.where(op == _MAX, 32 + value, value))
            pair.append(np.where(own, _WEIGHTED + 2 * block + half, code))
        yield pair[0], pair[1]


def equal_blocks(table: Table, stride: int) -> Flags:
    """Whether two blocks of a cell add the same two values."""
    found = np.zeros(len(table), dtype=np.bool_)
    seen: list[Counts] = []
    for first, second in _codes(table, stride):
        both = np.minimum(first, second) * 256 + np.maximum(first, second)
        for other in seen:
            found |= other == both
        seen.append(both)
    return found


@dataclass(frozen=True, slots=True)
class CellCounts:
    """What a cell does with its values, apart from shapes. Lists run over values: two inputs, then the blocks."""

    stride: int
    ends: Counts  # how many values are joined
    relu: list[Flags]  # some separable convolution reads the value
    other: list[Flags]  # something else does (the joining included)
    average: list[Flags]
    maximum: list[Flags]
    seps: dict[tuple[int, int], Counts]  # (kernel, stride of the first half) -> how many
    twice: list[Flags]  # for each block: it adds a value to itself
    reductions: Counts  # factorised reductions: strided identities, unread inputs
    crops: Counts  # distinct values that they crop

    def alone(self, value: int) -> Flags:
        """The value goes through a ReLU and nothing else reads it."""
        return self.relu[value] & ~self.other[value]


def cell_counts(table: Table, stride: int) -> CellCounts:
    """Counts of cells given as a table [n, blocks, 4]."""
    rows, blocks, _ = table.shape
    values = 2 + blocks
    read = np.zeros((values, 5, rows), dtype=np.int8)  # by value and operation
    at = np.arange(rows)
    for block in range(blocks):
        for half in (0, 1):
            read[table[:, block, 2 * half], table[:, block, 2 * half + 1], at] += 1
    unread = read.sum(axis=1) == 0
    relu = [(read[value, 0] + read[value, 1]) > 0 for value in range(values)]
    other = [(read[value, 2:] > 0).any(axis=0) | unread[value] for value in range(values)]
    seps: dict[tuple[int, int], Counts] = {}
    for op, kernel in _SEPS:
        outer, inner = read[:2, op].sum(axis=0), read[2:, op].sum(axis=0)
        seps[kernel, 1] = inner if stride == 2 else outer + inner
        if stride == 2:
            seps[kernel, 2] = outer
    strided = read[:2, _IDENTITY] + unread[:2] if stride == 2 else np.zeros((2, rows), dtype=np.int8)
    return CellCounts(
        stride=stride,
        ends=unread.sum(axis=0),
        relu=relu,
        other=other,
        average=[read[value, _AVERAGE] > 0 for value in range(values)],
        maximum=[read[value, _MAX] > 0 for value in range(values)],
        seps=seps,
        twice=[first == second for first, second in _codes(table, stride)],
        reductions=strided.sum(axis=0),
        crops=(strided > 0).sum(axis=0),
    )


def _window(op: str, kernel: int, stride: int, size: int, channels: int) -> Signature:
    attributes = (kernel, stride, "same") if op == "average" else (kernel, stride)
    after = (1, size // stride, size // stride, channels)
    return Signature(op, attributes, ((1, size, size, channels),), after)


def _conv(size: int, channels: int, filters: int, kernel: int = 1, pad: str = "same") -> Signature:
    shape = (1, size, size, channels)
    return Signature("conv", (filters, kernel, 1, pad), (shape,), (1, size, size, filters))


def _relu(size: int, channels: int) -> Signature:
    shape = (1, size, size, channels)
    return Signature("relu", ("relu",), (shape,), shape)


def _join(size: int, channels: int, parts: int) -> Signature:
    return Signature("concat", (), ((1, size, size, channels),) * parts, (1, size, size, parts * channels))


def _sum(size: int, channels: int) -> Signature:
    shape = (1, size, size, channels)
    return Signature("add", (), (shape, shape), shape)


def _tally_reduction(tally: Tally, size: int, channels: int, filters: int, count: Counts | Flags, crops: Counts | Flags) -> None:
    """Factorised reductions of values of ``size`` pixels and ``channels``: two strided convolutions joined."""
    half = (1, size // 2, size // 2, filters // 2)
    whole, odd = (1, size, size, channels), (1, size - 1, size - 1, channels)
    tally.add(Signature("crop", (), (whole,), odd), crops)
    for shape in (whole, odd):
        tally.add(Signature("conv", (filters // 2, 1, 2, "valid"), (shape,), half), count)
    tally.add(_join(size // 2, filters // 2, 2), count)


def _tally_cell(tally: Tally, cell: CellCounts, size: int, filters: int, times: int) -> None:
    """Everything inside ``times`` cells whose inputs have ``size`` pixels, but what makes inputs and output."""
    after = size // cell.stride
    for (kernel, stride), count in cell.seps.items():
        tally.add(_window("depthwise", kernel, stride, after * stride, filters), times * count)
        tally.add(_window("depthwise", kernel, 1, after, filters), times * count)
        pointwise = _conv(after, filters, filters, 1, "valid")
        tally.add(replace(pointwise, act="relu"), times * count)
        tally.add(pointwise, times * count)
    for value, (average, maximum) in enumerate(zip(cell.average, cell.maximum, strict=True)):
        stride = cell.stride if value < 2 else 1
        tally.add(_window("average", 3, stride, after * stride, filters), times * average)
        tally.add(_window("max", 3, stride, after * stride, filters), times * maximum)
    if cell.stride == 2:
        _tally_reduction(tally, size, filters, filters, times * cell.reductions, times * cell.crops)
    last = len(cell.twice) - 1
    for block, twice in enumerate(cell.twice):
        alone = cell.alone(2 + block)
        plain = _sum(after, filters)
        # The last block is never read inside; alone at the end it makes the layer's output, which the layers' tally
        # counts.
        here = cell.ends > 1 if block == last else np.ones(tally.rows, dtype=np.bool_)
        tally.split(plain, times * (here & ~twice), alone)
        tally.split(replace(plain, repeats=(0, 0)), times * (here & twice), alone)
        tally.add(_relu(after, filters), times * (cell.relu[2 + block] & ~alone))
    for ends in np.unique(cell.ends[cell.ends > 1]).tolist():
        tally.add(_join(after, filters, ends), times * (cell.ends == ends))


@dataclass(slots=True)
class _Value:
    """A layer's output on its way: size in pixels, filters, channels as a multiple of these, and its cell."""

    size: int
    filters: int
    ends: Counts
    cell: CellCounts | None  # None: the stem
    shared: Flags  # something besides ReLUs reads it


def tally_networks(normal: Table, reduction: Table, depth: int, filters: int, size: int, classes: int) -> Tally:
    """Counts of networks whose cells have no two equal blocks."""
    rows = len(normal)
    tally = Tally(rows)
    cells = {1: cell_counts(normal, 1), 2: cell_counts(reduction, 2)}
    nothing = np.zeros(rows, dtype=np.bool_)
    stem = _Value(size, filters, np.full(rows, 3), None, nothing)
    older = newer = stem
    outputs: list[_Value] = []
    for layer in range(3 * depth + 2):
        stride = 2 if layer in (depth, 2 * depth + 1) else 1
        filters *= stride
        cell = cells[stride]
        _tally_calibration(tally, older, newer, cell, filters)
        output = _Value(newer.size // stride, filters, cell.ends, cell, nothing)
        outputs.append(output)
        older, newer = newer, output
    for stage in range(3):
        inside = filters >> (2 - stage)
        _tally_cell(tally, cells[1], size >> stage, inside, depth)
        if stage:
            _tally_cell(tally, cells[2], size >> (stage - 1), inside, 1)
    tally.add(replace(_conv(size, 3, 3 * stem.filters, 3), act="relu"), 1)
    for value in outputs:
        _tally_output(tally, value)
    for ends in np.unique(outputs[-1].ends).tolist():
        # The head's keys depend on how many channels the last layer has.
        here = outputs[-1].ends == ends
        channels = ends * filters
        shape = (1, outputs[-1].size, outputs[-1].size, channels)
        tally.add(Signature("mean", (), (shape,), (1, channels)), here)
        tally.add(Signature("dense", (classes, 1), ((1, channels),), (1, classes)), here)
    return tally


def _tally_calibration(tally: Tally, older: _Value, newer: _Value, cell: CellCounts, filters: int) -> None:
    """From the two latest outputs to a layer's two inputs; marks what reads an output past its ReLU."""
    size = newer.size
    # Older input. Its ReLU (if it has one) is the same expression as the one that the layer before computed.
    for ends in np.unique(older.ends).tolist():
        here = older.ends == ends
        channels = ends * older.filters
        if older.size != size:
            _tally_reduction(tally, older.size, channels, filters, here, here)
            tally.add(_relu(size, filters), here & cell.relu[0])  # behind a concatenation: stays alone
        elif channels != filters:
            tally.split(_conv(size, channels, filters), here, cell.alone(0))
            tally.add(_relu(size, filters), here & cell.relu[0] & ~cell.alone(0))
        else:
            older.shared = older.shared | (here & cell.other[0])
    for ends in np.unique(newer.ends).tolist():
        if ends * newer.filters != filters:
            calibrated = replace(_conv(size, ends * newer.filters, filters), act="relu")
            tally.add(calibrated, newer.ends == ends)
    tally.split(_conv(size, filters, filters), 1, cell.alone(1))  # layer_base
    tally.add(_relu(size, filters), cell.relu[1] & ~cell.alone(1))


def _tally_output(tally: Tally, value: _Value) -> None:
    """The ReLU that all readers of a layer's output share, and the sum that makes the output where nothing is joined."""
    assert value.cell is not None
    single = value.ends == 1
    fused = single & ~value.shared
    plain = _sum(value.size, value.filters)
    twice = value.cell.twice[-1]
    tally.split(plain, single & ~twice, fused)
    tally.split(replace(plain, repeats=(0, 0)), single & twice, fused)
    for ends in np.unique(value.ends).tolist():
        tally.add(_relu(value.size, ends * value.filters), (value.ends == ends) & ~fused)


def block_table(cells: Sequence[Sequence[Sequence[int]]]) -> Table:
    """Cells as an array [n, blocks, 4]."""
    return np.array(cells, dtype=np.int8).reshape(len(cells), -1, 4)
