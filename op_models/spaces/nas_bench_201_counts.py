"""Operation counts of all NAS-Bench-201 cells at once, by array arithmetic over [n, 6] operation numbers.

The converter's rules (dead edges, merged equal expressions, ReLUs that go into their producer) are applied
symbolically: every value of a cell gets a small number, equal numbers meaning the same tensor, for all genotypes in
parallel:

    0 nothing   1 the cell's input   10 + e the convolution on edge e   20 the sum of node 2
    21, 22 first and second sum of node 3   30 + v the pool of value v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_models.layers import Precision
from op_models.spaces.base import CountMatrix
from op_models.spaces.network import Signature, tabulate

Flags = NDArray[np.bool_]
Values = NDArray[np.integer[Any]]
_SUM2, _SUM3, _SUM3B, _POOL = 20, 21, 22, 30
# Kinds of operations in a cell; each may end in a ReLU. "twice" is the sum of a tensor with itself.
KINDS = ("conv1", "conv3", "pool", "add", "twice")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the network: picture size in pixels, channels."""

    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """NHWC shape of its activations."""
        return (1, self.size, self.size, self.channels)


@dataclass(frozen=True, slots=True)
class CellFeatures:
    """What one cell executes, for n genotypes; arrays are [n].

    ``plain`` and ``fused`` count operations by kind without and with a ReLU, leaving out the one that makes the
    cell's output; ``relus`` counts standalone ReLUs on values inside the cell. ``last`` is one-hot: which kind makes
    the output. ``reads_relu``: the cell's input goes through a ReLU; ``relu_alone``: and through nothing else.
    """

    plain: dict[str, Values]
    fused: dict[str, Values]
    last: dict[str, Values]
    relus: Values
    reads_relu: Flags
    relu_alone: Flags
    connected: Flags
    identity: Flags


def _any(flags: Sequence[Flags]) -> Flags:
    found = flags[0]
    for flag in flags[1:]:
        found = found | flag
    return found


def _sum_of(flags: Sequence[Flags]) -> Values:
    total = flags[0].astype(np.int8)
    for flag in flags[1:]:
        total = total + flag
    return total


def cell_features(numbers: NDArray[np.int8]) -> CellFeatures:
    """Features of the cells with these operation numbers."""
    ops = [np.ascontiguousarray(numbers[:, edge]) for edge in range(6)]

    def through(edge: int, source: Values | int) -> Values:
        made = np.choose(ops[edge], [0, source, 10 + edge, 10 + edge, _POOL + source])
        return np.where(np.equal(source, 0), 0, made).astype(np.int8)

    node1 = through(0, 1)
    a, b = through(1, 1), through(2, node1)
    summed2 = (a > 0) & (b > 0)
    node2 = np.where(summed2, _SUM2, a + b)
    c, d, e = through(3, 1), through(4, node1), through(5, node2)
    terms = (c > 0).astype(np.int8) + (d > 0) + (e > 0)
    p = np.where(c > 0, c, d)
    q = np.where((c > 0) & (d > 0), d, e)
    merged = summed2 & (((p == a) & (q == b)) | ((p == b) & (q == a)))
    sum3 = np.where(merged, _SUM2, _SUM3)
    node3 = np.choose(np.minimum(terms, 3), [0, c + d + e, sum3, _SUM3B])

    live_node2 = e > 0
    live_node1 = (d > 0) | ((b > 0) & live_node2)
    live = [
        (node1 > 0) & live_node1,
        (a > 0) & live_node2,
        (b > 0) & live_node2,
        c > 0,
        d > 0,
        e > 0,
    ]
    runs_sum2 = summed2 & (live_node2 | (merged & (terms >= 2)))
    runs_sum3 = (terms >= 2) & ~merged
    runs_sum3b = terms == 3
    operands = [(a, runs_sum2), (b, runs_sum2), (p, runs_sum3), (q, runs_sum3), (sum3, runs_sum3b), (e, runs_sum3b)]

    one = np.ones_like(node1)
    sources = [(one, (0, 1, 3)), (node1, (2, 4)), (node2, (5,))]

    def applied(is_op: Callable[[Values], Flags]) -> list[Flags]:
        """For each of the three sources: does some live edge from it do this operation?"""
        return [_any([live[edge] & is_op(ops[edge]) for edge in edges]) for _, edges in sources]

    relu_from = applied(lambda op: (op == 2) | (op == 3))
    pool_from = applied(lambda op: op == 4)

    def on(value: Values, flags: list[Flags]) -> Flags:
        """Is the operation applied to this very tensor, from whichever node it is reached?"""
        return _any([flag & (source == value) for flag, (source, _) in zip(flags, sources, strict=True)])

    def fresh(flags: list[Flags]) -> list[Flags]:
        """The same flags with a tensor that an earlier source already stands for taken out."""
        return [
            flags[0],
            flags[1] & ~(flags[0] & (node1 == 1)),
            flags[2] & ~(flags[0] & (node2 == 1)) & ~(flags[1] & (node2 == node1)),
        ]

    def added(value: Values) -> Values:
        return _sum_of([runs & (operand == value) for operand, runs in operands])

    same2, same3, same3b = a == b, p == q, sum3 == e
    convs = {kind: [live[edge] & (ops[edge] == op) for edge in range(6)] for kind, op in (("conv1", 2), ("conv3", 3))}

    def made_by(value: Values) -> dict[str, Flags]:
        """Which kind of operation makes this value (all False for 0 and the cell's input)."""
        is_sum = (value >= _SUM2) & (value < _POOL)
        same = ((value == _SUM2) & same2) | ((value == _SUM3) & same3) | ((value == _SUM3B) & same3b)
        return {
            **{kind: _any([flag & (value == 10 + at) for at, flag in enumerate(flags)]) for kind, flags in convs.items()},
            "pool": value > _POOL,
            "add": is_sum & ~same,
            "twice": is_sum & same,
        }

    total = {kind: _sum_of(flags) for kind, flags in convs.items()}
    total["pool"] = _sum_of(fresh(pool_from))
    sums = [(runs_sum2, same2), (runs_sum3, same3), (runs_sum3b, same3b)]
    total["add"] = _sum_of([runs & ~same for runs, same in sums])
    total["twice"] = _sum_of([runs & same for runs, same in sums])

    fresh_relus = fresh(relu_from)
    inside = [fresh_relus[1] & (node1 > 1), fresh_relus[2] & (node2 > 1)]
    fused = {kind: np.zeros_like(node1) for kind in KINDS}
    relus = np.zeros_like(node1)
    for value, has_relu in zip((node1, node2), inside, strict=True):
        goes_in = has_relu & ~on(value, pool_from) & (added(value) == 0)
        relus += has_relu & ~goes_in
        for kind, made in made_by(value).items():
            fused[kind] += made & goes_in
    connected = node3 > 0
    identity = node3 == 1
    last: dict[str, Values] = {kind: (made & connected).astype(np.int8) for kind, made in made_by(node3).items()}
    reads_relu = on(one, relu_from) & connected
    return CellFeatures(
        plain={kind: total[kind] - fused[kind] - last[kind] for kind in KINDS},
        fused=fused,
        last=last,
        relus=relus,
        reads_relu=reads_relu,
        relu_alone=reads_relu & ~on(one, pool_from) & (added(one) == 0),
        connected=connected,
        identity=identity,
    )


def count_table(cells: CellFeatures, stages: tuple[Stage, ...], repeats: int, classes: int, precision: Precision) -> CountMatrix:
    """Counts of whole networks: ``repeats`` cells a stage, residual blocks between stages, stem and end."""
    columns: list[tuple[Signature, Values]] = []
    count = cells.relus.size
    always = np.ones(count, dtype=np.int16)
    works = (~cells.identity).astype(np.int16)  # identity cells vanish altogether
    enters_fused = (cells.relu_alone & ~cells.identity).astype(np.int16)
    enters_alone = (cells.reads_relu & ~cells.relu_alone & ~cells.identity).astype(np.int16)
    for number, stage in enumerate(stages):
        final = number == len(stages) - 1
        # What makes the stage's first value: stem or residual sum; its ReLU goes in where it is the only reader.
        # Before a residual block an identity stage hands on a value with two readers.
        first = _stem(stages[0]) if number == 0 else _sum(stage)
        columns += [(first, always - enters_fused), (_relu(first), enters_fused)]
        columns.append((_alone(stage), works * repeats * cells.relus + repeats * enters_alone))
        for kind in KINDS:
            plain, fused = _of_kind(kind, stage), _relu(_of_kind(kind, stage))
            inner = works * (repeats - 1) * cells.last[kind]
            # The last batch norm folds into a convolution, and the ReLU behind it goes in as well.
            folds = works * cells.last[kind] if final and kind in ("conv1", "conv3") else 0 * works
            columns.append((fused, works * repeats * cells.fused[kind] + inner * enters_fused + folds))
            columns.append(
                (
                    plain,
                    works * repeats * cells.plain[kind] + inner * (1 - enters_fused) + works * cells.last[kind] - folds,
                )
            )
        if not final:
            columns += [(signature, always) for signature in _residual(stage, stages[number + 1])]
    end = stages[-1]
    unfolded = always - works * (cells.last["conv1"] + cells.last["conv3"])
    columns += [(Signature("norm", (), (end.shape,), end.shape, "relu"), unfolded)]
    pooled = (1, end.channels)
    columns += [(Signature("mean", (), (end.shape,), pooled), always)]
    columns += [(Signature("dense", (classes, 1), (pooled,), (1, classes)), always)]

    summed: dict[Signature, Values] = {}
    for signature, values in columns:
        summed[signature] = summed[signature] + values if signature in summed else values
    return tabulate(summed, cells.connected, precision)


def _relu(signature: Signature) -> Signature:
    return Signature(signature.op, signature.attributes, signature.shapes, signature.shape, "relu", signature.repeats)


def _stem(stage: Stage) -> Signature:
    return Signature("conv", (stage.channels, 3, 1, "same"), ((1, stage.size, stage.size, 3),), stage.shape)


def _sum(stage: Stage) -> Signature:
    return Signature("add", (), (stage.shape, stage.shape), stage.shape)


def _alone(stage: Stage) -> Signature:
    return Signature("relu", ("relu",), (stage.shape,), stage.shape)


def _of_kind(kind: str, stage: Stage) -> Signature:
    match kind:
        case "conv1" | "conv3":
            return Signature("conv", (stage.channels, int(kind[-1]), 1, "same"), (stage.shape,), stage.shape)
        case "pool":
            return Signature("average", (3, 1, "same"), (stage.shape,), stage.shape)
    return Signature("add", (), (stage.shape, stage.shape), stage.shape, repeats=(0, 0) if kind == "twice" else ())


def _residual(stage: Stage, after: Stage) -> list[Signature]:
    """The residual block without its sum: its ReLU (which two readers keep alone), convolutions and pool."""
    halved = (*after.shape[:3], stage.channels)
    return [
        _alone(stage),
        Signature("conv", (after.channels, 3, 2, "same"), (stage.shape,), after.shape, "relu"),
        Signature("conv", (after.channels, 3, 1, "same"), (after.shape,), after.shape),
        Signature("average", (2, 2, "valid"), (stage.shape,), halved),
        Signature("conv", (after.channels, 1, 1, "valid"), (halved,), after.shape),
    ]
