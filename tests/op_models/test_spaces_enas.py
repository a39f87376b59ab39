"""ENAS micro: the published sizes, the converter's simplifications, and bulk counts against graphs that were built."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from op_models import counts, graph
from op_models.errors import GenotypeError
from op_models.layers import PRECISIONS, Precision
from op_models.spaces.base import sample
from op_models.spaces.enas import (
    AVG3,
    BLOCKS,
    IDENTITY,
    MAX3,
    SEP3,
    SEP5,
    Block,
    Cell,
    EnasGenotype,
    EnasMicro,
    canonical_cell,
    loose_ends,
)
from op_models.spaces.enas_counts import block_table, equal_blocks, tally_networks
from op_models.spaces.network import key_counts, signatures


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    blocks: list[Block] = []
    for block in range(BLOCKS):
        value, op = st.integers(0, 1 + block), st.integers(0, 4)
        blocks.append((draw(value), draw(op), draw(value), draw(op)))
    return tuple(blocks)


genotypes = st.builds(EnasGenotype, cells(), cells())


def wired(operations: list[int], ends: int, rng: np.random.Generator, source: int | None = None) -> Cell:
    """A random cell with these ten operations and this many loose ends (reading ``source`` alone, if given)."""
    while True:
        order = rng.permutation(operations).tolist()
        blocks: list[Block] = []
        for block in range(BLOCKS):
            a, b = (source, source) if source is not None else rng.integers(2 + block, size=2).tolist()
            blocks.append((a, order[2 * block], b, order[2 * block + 1]))
        cell = tuple(blocks)
        unread_input = source is None and min(loose_ends(cell)) < 2
        if len(loose_ends(cell)) == ends and not unread_input and not equal_blocks(block_table([cell]), 1)[0]:
            return cell


def walked(data: bytes) -> dict[str, int]:
    return dict(Counter(group.spec.key for group in graph.groups(graph.parse(data, "network"))))


# Cells of the published comparison: operations of a normal and a reduction cell, loose ends of each; parameters (batch
# norm folded, a bias for each depthwise, ten classes) and MACs of 15 + 2 cells at F = 36.
ENAS = ([SEP5] * 2 + [SEP3] * 3 + [AVG3] * 3 + [IDENTITY] * 2, 5, [SEP5] * 3 + [SEP3] * 3 + [AVG3] * 4, 3)
ELP = (
    [SEP5] + [SEP3] * 2 + [AVG3] * 4 + [IDENTITY] * 3,
    4,
    [SEP5] * 3 + [AVG3] * 2 + [MAX3] * 3 + [IDENTITY] * 2,
    6,
)


@pytest.mark.parametrize("seed", range(3))
def test_the_published_enas_cells_have_the_published_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genotype = EnasGenotype(wired(ENAS[0], ENAS[1], rng), wired(ENAS[2], ENAS[3], rng))
    found = counts.graph_counts(graph.parse(EnasMicro().graph(genotype), "ENAS (15)"))
    assert (found.params, found.macs) == (3_431_134, 546_681_888)


@pytest.mark.parametrize("source", [0, 1])
def test_the_published_elp_nas_cells_have_the_published_size(source: int) -> None:
    rng = np.random.default_rng(source)
    genotype = EnasGenotype(wired(ELP[0], ELP[1], rng), wired(ELP[2], ELP[3], rng, source))
    found = counts.graph_counts(graph.parse(EnasMicro().graph(genotype), "ELP-NAS (15)"))
    assert (found.params, found.macs) == (2_624_374, 411_776_640)


@given(genotypes)
def test_text_and_genotype_invert_each_other(genotype: EnasGenotype) -> None:
    space = EnasMicro()
    assert space.parse(space.format(genotype)) == genotype


@given(st.text(alphabet="0123456789 -x", max_size=90))
def test_any_text_is_a_genotype_or_a_reasoned_refusal(text: str) -> None:
    space = EnasMicro()
    try:
        genotype = space.parse(text)
    except GenotypeError as error:
        assert error.genotype == text
        assert error.reason
    else:
        assert space.parse(space.format(genotype)) == genotype


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2 3", "expected 40 numbers"),
        (" ".join(["2", "0", "0", "0", *["0"] * 36]), "block 0 of the normal cell reads values 0..1"),
        (" ".join(["0"] * 39 + ["5"]), "block 4 of the reduction cell"),
        (" ".join(["0"] * 39 + ["x"]), "expected 40 numbers"),
    ],
)
def test_a_wrong_genotype_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(GenotypeError, match=said):
        EnasMicro().parse(text)


def swapped(cell: Cell, block: int) -> Cell:
    a, f, b, g = cell[block]
    return (*cell[:block], (b, g, a, f), *cell[block + 1 :])


def exchanged(cell: Cell, block: int) -> Cell:
    """Blocks ``block`` and the next one in the other order; only where the second does not read the first."""
    first, second = 2 + block, 3 + block
    rename = {first: second, second: first}
    moved = [*cell[:block], cell[block + 1], cell[block], *cell[block + 2 :]]
    return tuple((rename.get(a, a), f, rename.get(b, b), g) for a, f, b, g in moved)


@given(genotypes, st.integers(0, BLOCKS - 1), st.integers(0, BLOCKS - 2))
def test_orders_that_change_nothing_have_one_canonical_form(genotype: EnasGenotype, half: int, block: int) -> None:
    cell = genotype.normal
    canonical = canonical_cell(cell)
    assert canonical_cell(canonical) == canonical
    assert canonical_cell(swapped(cell, half)) == canonical
    assume(2 + block not in (cell[block + 1][0], cell[block + 1][2]))
    assert canonical_cell(exchanged(cell, block)) == canonical


@given(genotypes, st.integers(1, 2))
@settings(max_examples=25)
def test_a_canonical_form_executes_the_same_operations(genotype: EnasGenotype, depth: int) -> None:
    space = EnasMicro(depth)
    both = space.count_matrix([genotype, space.canonical(genotype)])
    assert both.row(0) == both.row(1)


@given(st.lists(genotypes, min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=25)
def test_bulk_counts_equal_those_of_the_expression_graph(drawn: list[EnasGenotype], depth: int) -> None:
    space = EnasMicro(depth, filters=8, size=16)
    matrix = space.count_matrix(drawn)
    for row, genotype in enumerate(drawn):
        net, output = space.network(genotype)
        assert matrix.row(row) == key_counts(signatures(net.simplified(output)[0]), "float32")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("depth", [1, 2])
def test_bulk_counts_equal_the_walk_of_each_built_graph(depth: int, precision: Precision) -> None:
    space = EnasMicro(depth, filters=8, size=16)
    drawn = sample(space, 6, seed=depth)
    matrix = space.count_matrix(drawn, precision)
    assert matrix.valid.all()
    for row, genotype in enumerate(drawn):
        assert matrix.row(row) == walked(space.graph(genotype, precision))


# Chains of blocks: one loose end, so a layer's output is a bare sum, whose ReLU may or may not go into it.
CHAIN: Cell = ((0, SEP3, 1, AVG3), (2, IDENTITY, 1, SEP5), (3, MAX3, 0, SEP3), (4, SEP3, 2, AVG3), (5, SEP5, 4, IDENTITY))
PAIR: Cell = ((0, SEP3, 1, AVG3), (2, IDENTITY, 1, SEP5), (3, MAX3, 0, SEP3), (4, SEP3, 2, AVG3), (4, SEP5, 3, IDENTITY))
POOLS: Cell = ((0, AVG3, 1, MAX3), (0, AVG3, 1, MAX3), (2, AVG3, 3, AVG3), (2, AVG3, 3, AVG3), (0, IDENTITY, 0, IDENTITY))
ONE_SOURCE: Cell = ((0, SEP3, 0, SEP3), (0, AVG3, 0, AVG3), (0, MAX3, 0, SEP5), (0, IDENTITY, 0, MAX3), (0, IDENTITY, 0, AVG3))


@pytest.mark.parametrize("normal", [CHAIN, PAIR, POOLS, ONE_SOURCE])
@pytest.mark.parametrize("reduction", [CHAIN, PAIR, POOLS, ONE_SOURCE])
def test_extreme_wirings_count_as_they_are_built(normal: Cell, reduction: Cell) -> None:
    space = EnasMicro(2, filters=4, size=8)
    genotype = EnasGenotype(normal, reduction)
    assert space.count_matrix([genotype]).row(0) == walked(space.graph(genotype))


def test_equal_pools_and_relus_of_one_tensor_are_computed_once() -> None:
    space = EnasMicro(1, filters=4, size=8)
    cell: Cell = ((1, AVG3, 1, AVG3), (1, AVG3, 2, SEP3), (1, SEP3, 2, SEP5), (0, MAX3, 3, SEP3), (0, MAX3, 4, SEP3))
    found = walked(space.graph(EnasGenotype(cell, cell)))
    averages = sum(count for key, count in found.items() if key.startswith("AVERAGE_POOL_2D") and "8x8x4]" in key[:40])
    assert averages == 1  # three readers of value 1 in the only layer of 8x8x4
    relus = sum(count for key, count in found.items() if key.startswith("RELU(f32[1x8x8x4])"))
    assert relus == 1  # value 1 is read by pools as well; all other ReLUs go into their producers


def test_no_relu_stands_alone_behind_the_only_reader_of_a_sum() -> None:
    space = EnasMicro(1, filters=4, size=8)
    for genotype in sample(space, 8, seed=5):
        for group in graph.parse(space.graph(genotype), "network").groups:
            assert len(group.operators) == 1, "the walk found a ReLU that the graph should have fused"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_operation_keys_hold_what_unseen_networks_execute(depth: int) -> None:
    space = EnasMicro(depth)
    keys = space.operation_keys()
    rng = np.random.default_rng(1234 + depth)
    normal, reduction = (
        block_table([space.random(rng).normal for _ in range(600)]),
        block_table([space.random(rng).reduction for _ in range(600)]),
    )
    distinct = ~(equal_blocks(normal, 2) | equal_blocks(reduction, 1) | equal_blocks(reduction, 2))
    tally = tally_networks(normal[distinct], reduction[distinct], depth, 36, 32, 10)
    executed = key_counts(Counter({signature: int(c.sum()) for signature, c in tally.columns.items()}), "float32")
    assert {key for key, count in executed.items() if count} <= keys
    assert len(keys) < 200


def test_sampling_is_decided_by_the_seed_and_gives_different_networks() -> None:
    space = EnasMicro(2)
    assert sample(space, 20, seed=1) == sample(space, 20, seed=1)
    assert sample(space, 20, seed=1) != sample(space, 20, seed=2)
    assert len({space.canonical(genotype) for genotype in sample(space, 50, seed=3)}) == 50


def test_sampled_inputs_and_operations_are_uniform() -> None:
    rng = np.random.default_rng(0)
    table = block_table([EnasMicro().random(rng).normal for _ in range(2000)])
    for block in range(BLOCKS):
        share = np.bincount(table[:, block, 0], minlength=2 + block) / 2000
        assert np.abs(share - 1 / (2 + block)).max() < 0.05
    assert np.abs(np.bincount(table[:, :, 1].ravel()) / 10_000 - 0.2).max() < 0.03


@pytest.mark.parametrize("settings_", [{"depth": 0}, {"filters": 7}, {"size": 30}, {"classes": 0}])
def test_impossible_settings_are_refused(settings_: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EnasMicro(**settings_)


def test_genotypes_are_values() -> None:
    genotype = EnasMicro().random(np.random.default_rng(0))
    assert {genotype, dataclasses.replace(genotype)} == {genotype}
