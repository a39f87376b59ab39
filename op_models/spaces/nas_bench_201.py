"""NAS-Bench-201 (Dong and Yang, 2020): 15,625 cells of four nodes and five operations, in the published macro
structure.

Wiring facts, from ``lib/models/cell_operations.py`` and ``cell_infers`` of D-X-Y/AutoDL-Projects (MIT; read, not
copied):

* stem: 3x3 convolution to C channels and batch norm; three stages of N cells with C, 2C and 4C channels;
* a node is the sum of one operation from every earlier node; operations are ``none``, ``skip_connect``,
  ``nor_conv_1x1`` and ``nor_conv_3x3`` (ReLU, convolution, batch norm) and ``avg_pool_3x3`` (padding not counted);
* between stages a residual block: two 3x3 ReLU-convolution-norms, the first with stride 2, beside a 2x2 average pool
  and a 1x1 convolution without norm;
* end: batch norm, ReLU, global mean, dense layer.

Strided 3x3 convolutions use TensorFlow's "same" padding (the published ones pad one pixel on every side): same
shapes, same work.

The converter drops what does not reach the output, so an edge ``none`` may take others with it; a cell whose output
depends on no input makes the network a constant, which :meth:`NasBench201.graph` refuses. The last batch norm folds
into a convolution where that alone makes the cell's output, else MUL and ADD remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from op_models.errors import GenotypeError
from op_models.layers import Precision
from op_models.spaces.base import CountMatrix, DisconnectedNetworkError
from op_models.spaces.nas_bench_201_counts import Stage, cell_features, count_table
from op_models.spaces.network import Network

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV1, CONV3, POOL = range(5)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

# Operation numbers of the six edges in the order of EDGES (op0..op5 of the published tables).
NasBenchGenotype = tuple[int, int, int, int, int, int]
Numbers = NDArray[np.int8]


def all_genotypes() -> list[NasBenchGenotype]:
    """All 15,625 genotypes in counting order of their operation numbers (the published index is shuffled)."""
    return [(a, b, c, d, e, f) for a, b, c, d, e, f in product(range(5), repeat=6)]


class NasBench201:
    """Networks with ``cells`` cells in each of three stages; published: 5, 16 channels and a 32 px picture."""

    def __init__(self, cells: int = 5, channels: int = 16, classes: int = 10, size: int = 32) -> None:
        if cells < 1 or channels < 1 or classes < 1 or size < 4 or size % 4:
            raise ValueError("cells, channels and classes must be at least 1, and the picture a multiple of 4")
        self.cells, self.channels, self.classes, self.size = cells, channels, classes, size

    @property
    def name(self) -> str:
        """Name with the settings."""
        return f"nas-bench-201-n{self.cells}-c{self.channels}-k{self.classes}-{self.size}px"

    def random(self, rng: np.random.Generator) -> NasBenchGenotype:
        """A connected genotype, uniformly among those."""
        while True:
            a, b, c, d, e, f = rng.integers(5, size=6).tolist()
            if _expression((a, b, c, d, e, f)) is not None:
                return a, b, c, d, e, f

    def parse(self, text: str) -> NasBenchGenotype:
        """The genotype of ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
        a, b, c, d, e, f = self.parse_many([text])[0].tolist()
        return a, b, c, d, e, f

    def parse_many(self, texts: Iterable[str]) -> Numbers:
        """Operation numbers [n, 6] (int8) of many strings."""
        one, two, three = _node_texts()
        codes: list[int] = []
        for text in texts:
            try:
                first, second, third = text.split("+")
                codes.append(one[first] + two[second] + three[third])
            except (KeyError, ValueError):
                raise _explained(text) from None
        return _digits()[codes]

    def format(self, genotype: NasBenchGenotype) -> str:
        """The published string of a genotype."""
        a, b, c, d, e, f = (OPERATIONS[number] for number in genotype)
        return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"

    def canonical(self, genotype: NasBenchGenotype) -> NasBenchGenotype:
        """The first genotype (in counting order) whose converted network is the same.

        Equal means: dead edges gone, skips followed, equal pools and sums merged, sums sorted. All disconnected
        genotypes have the canonical form ``(0, 0, 0, 0, 0, 0)``.
        """
        return _representatives()[genotype]

    def network(self, genotype: NasBenchGenotype) -> tuple[Network, int]:
        """The network as an expression graph, and its output. Raises :class:`DisconnectedNetworkError`."""
        net = Network((self.size, self.size, 3))
        value = net.conv(net.input, self.channels, 3)
        for stage in range(3):
            channels = self.channels << stage
            if stage:
                value = _residual(net, value, channels)
            for _ in range(self.cells):
                end = _cell(net, value, genotype, channels)
                if end is None:
                    raise DisconnectedNetworkError(self.format(genotype))
                value = end
        value = net.relu(net.norm(value))
        return net, net.dense(net.mean(value), self.classes, bias=True)

    def graph(self, genotype: NasBenchGenotype, precision: Precision = "float32", seed: int = 0) -> bytes:
        """The network as a ``.tflite`` file. Raises :class:`DisconnectedNetworkError`."""
        net, output = self.network(genotype)
        return net.write(output, precision, seed, self.name)

    def count_matrix(self, genotypes: Sequence[NasBenchGenotype] | Numbers, precision: Precision = "float32") -> CountMatrix:
        """Operation counts of many genotypes (a sequence, or operation numbers [n, 6]); disconnected rows are not
        valid.

        All 15,625 cells are counted once a process; from then on this gathers rows.
        """
        numbers = np.asarray(genotypes, dtype=np.int8).reshape(-1, 6)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(OPERATIONS)):
            raise GenotypeError(str(numbers.max()), f"operation numbers lie in 0..{len(OPERATIONS) - 1}")
        return self._table(precision)[numbers @ _PLACES]

    def _table(self, precision: Precision) -> CountMatrix:
        return _counted(self.cells, self.channels, self.classes, self.size, precision)

    def operation_keys(self, precision: Precision = "float32") -> frozenset[str]:
        """Every operation that some connected network of the space executes (all networks are counted)."""
        matrix = self._table(precision)
        used = np.asarray(matrix.counts.any(axis=0))
        return frozenset(key for key, at in zip(matrix.keys, used, strict=True) if at)


@lru_cache(maxsize=16)
def _counted(cells: int, channels: int, classes: int, size: int, precision: Precision) -> CountMatrix:
    stages = tuple(Stage(size >> stage, channels << stage) for stage in range(3))
    return count_table(cell_features(_digits()), stages, cells, classes, precision)


def _cell(net: Network, value: int, genotype: NasBenchGenotype, channels: int) -> int | None:
    nodes: list[int | None] = [value]
    for node in range(1, 4):
        total: int | None = None
        for edge, (source, target) in enumerate(EDGES):
            start = nodes[source] if target == node else None
            if start is None or genotype[edge] == NONE:
                continue
            term = _edge(net, start, genotype[edge], channels)
            total = term if total is None else net.add(total, term)
        nodes.append(total)
    return nodes[3]


def _edge(net: Network, value: int, operation: int, channels: int) -> int:
    match operation:
        case 1:
            return value
        case 4:
            return net.average(value, 3)
    return net.conv(net.relu(value), channels, 1 if operation == CONV1 else 3)


def _residual(net: Network, value: int, channels: int) -> int:
    first = net.conv(net.relu(value), channels, 3, 2)
    second = net.conv(net.relu(first), channels, 3)
    shortcut = net.conv(net.average(value, 2, 2, "valid"), channels, 1, 1, "valid")
    return net.add(shortcut, second)


# --- text -------------------------------------------------------------------------------------------------------


_PLACES = 5 ** np.arange(5, -1, -1)  # place values of the six digits in counting order


@lru_cache(maxsize=1)
def _digits() -> Numbers:
    """[15625, 6]: the operation numbers of every genotype in counting order."""
    return (np.arange(5**6)[:, None] // _PLACES % 5).astype(np.int8)


@lru_cache(maxsize=1)
def _node_texts() -> tuple[dict[str, int], ...]:
    """For each node: its part of the string -> what its edges add to the place in counting order."""
    tables: list[dict[str, int]] = []
    for edges, place in ((1, 5**5), (2, 5**3), (3, 1)):
        texts = ("|" + "".join(f"{op}~{at}|" for at, op in enumerate(ops)) for ops in product(OPERATIONS, repeat=edges))
        tables.append({text: number * place for number, text in enumerate(texts)})
    return tuple(tables)


def _explained(text: str) -> GenotypeError:
    parts = text.split("+")
    if len(parts) != 3:
        return GenotypeError(text, f"expected three nodes separated by '+', found {len(parts)}")
    for node, (part, table) in enumerate(zip(parts, _node_texts(), strict=True), start=1):
        if part not in table:
            wanted = "|" + "".join(f"op~{source}|" for source in range(node))
            return GenotypeError(text, f"node {node} must read {wanted} with operations {', '.join(OPERATIONS)}, found {part!r}")
    raise AssertionError(text)


# --- canonical form ---------------------------------------------------------------------------------------------

Expression = tuple[str, tuple[str, ...]]


def _expression(genotype: NasBenchGenotype) -> Expression | None:
    """(output written out as a formula, formulas of all distinct values it needs); None if there is no output.

    The second part tells one convolution that is read twice from two equal ones.
    """
    texts: dict[int, str] = {0: "x"}  # value -> formula
    needs: dict[int, frozenset[int]] = {0: frozenset()}
    known: dict[tuple[str, tuple[int, ...]], int] = {}

    def value(key: tuple[str, tuple[int, ...]], text: str, sources: tuple[int, ...]) -> int:
        if key not in known:
            known[key] = len(texts)
            needs[len(texts)] = frozenset(sources).union(*(needs[source] for source in sources))
            texts[len(texts)] = text
        return known[key]

    nodes: list[int | None] = [0]
    for node in range(1, 4):
        terms = []
        for edge, (source, target) in enumerate(EDGES):
            start = nodes[source] if target == node else None
            match genotype[edge]:
                case _ if start is None:
                    continue
                case 1:
                    terms.append(start)
                case 4:
                    terms.append(value(("pool", (start,)), f"p({texts[start]})", (start,)))
                case 2 | 3 as kernel:
                    terms.append(value((f"conv{edge}", (start,)), f"c{kernel}({texts[start]})", (start,)))
        total = None
        for term in terms:
            if total is None:
                total = term
            else:
                both = tuple(sorted((total, term)))
                text = "(" + "+".join(sorted(texts[one] for one in both)) + ")"
                total = value(("add", both), text, both)
        nodes.append(total)
    end = nodes[3]
    return None if end is None else (texts[end], tuple(sorted(texts[need] for need in needs[end])))


@lru_cache(maxsize=1)
def _representatives() -> dict[NasBenchGenotype, NasBenchGenotype]:
    first: dict[Expression | None, NasBenchGenotype] = {}
    return {genotype: first.setdefault(_expression(genotype), genotype) for genotype in all_genotypes()}
