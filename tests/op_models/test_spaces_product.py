"""Product spaces and spaces of files: additive counts, scoring in bulk, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from op_models import counts, graph
from op_models.errors import GenotypeError, ModelFileError
from op_models.layers import PRECISIONS, NetworkBuilder, Precision
from op_models.spaces.base import sample
from op_models.spaces.files import FileSpace
from op_models.spaces.network import Network
from op_models.spaces.product import ProductSpace, Slot, mobile_space

SMALL = mobile_space(size=64, classes=10, width=0.25)


def walked(data: bytes) -> dict[str, int]:
    return dict(Counter(group.spec.key for group in graph.groups(graph.parse(data, "network"))))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_counts_of_a_product_space_equal_the_walk_of_built_graphs(precision: Precision) -> None:
    drawn = sample(SMALL, 4, seed=1)
    matrix = SMALL.count_matrix(drawn, precision)
    for row, genotype in enumerate(drawn):
        assert matrix.row(row) == walked(SMALL.graph(genotype, precision))
    assert set(matrix.keys) >= SMALL.operation_keys(precision)


def test_totals_are_counts_times_values() -> None:
    additive = SMALL.additive()
    choices = SMALL.random_many(40_000, seed=2)
    values = np.random.default_rng(0).uniform(1, 100, len(additive.keys))
    totals = additive.totals(choices, values)
    assert totals == pytest.approx(additive.matrix(choices).counts @ values, rel=1e-5)


def test_text_and_choices_invert_each_other() -> None:
    genotype = SMALL.random(np.random.default_rng(0))
    assert SMALL.parse(SMALL.format(genotype)) == genotype
    with pytest.raises(GenotypeError, match="expected 21 names"):
        SMALL.parse("k3e3")
    with pytest.raises(GenotypeError, match="'skip' is none of"):
        SMALL.parse("-".join(["skip"] * 21))
    with pytest.raises(GenotypeError, match="21 choices"):
        SMALL.graph((0, 1))


def test_a_slot_may_leave_its_layer_out() -> None:
    least = SMALL.parse("-".join("skip" if "skip" in slot.names else "k3e3" for slot in SMALL.slots))
    most = SMALL.parse("-".join(["k7e6"] * 21))
    macs = [counts.graph_counts(graph.parse(SMALL.graph(genotype), "ends")).macs for genotype in (least, most)]
    assert macs[0] < macs[1] / 3


def test_choices_that_change_their_neighbours_are_found_out() -> None:
    def relu(net: Network, value: int) -> int:
        return net.relu(value)  # goes into the convolution before it, or stays alone behind another ReLU

    def conv(net: Network, value: int) -> int:
        return net.conv(value, 4, 3)

    slots = [Slot(("conv", "relu"), (conv, relu))] * 4
    space = ProductSpace("tangled", (8, 8, 4), conv, slots, lambda net, value: net.dense(net.mean(value), 2, True))
    with pytest.raises(GenotypeError, match="not a sum over its choices"):
        space.additive()


def written(folder: Path, name: str, filters: int) -> Path:
    net = NetworkBuilder("float32")
    path = folder / name
    path.write_bytes(net.build(net.relu(net.conv2d(net.input((1, 4, 4, 3)), filters, 3))))
    return path


def test_files_are_a_space(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first, second = written(tmp_path, "a.tflite", 4), written(tmp_path / "sub", "b.tflite", 8)
    twin = written(tmp_path, "c.tflite", 4)
    space = FileSpace.of_directory(tmp_path)
    assert space.paths == (str(first), str(twin), str(second))
    assert space.graph(str(second)) == second.read_bytes()
    assert space.canonical(str(twin)) == str(first)
    matrix = space.count_matrix(space.paths)
    assert matrix.row(0) == matrix.row(1) != matrix.row(2)
    assert frozenset(matrix.keys) == space.operation_keys()
    drawn = sample(space, 2, seed=0)
    assert {space.canonical(path) for path in drawn} == {str(first), str(second)}
    assert space.parse(space.format(str(first))) == str(first)


def test_a_file_that_is_not_of_the_set_is_refused(tmp_path: Path) -> None:
    space = FileSpace([written(tmp_path, "a.tflite", 4)])
    with pytest.raises(GenotypeError, match="none of them"):
        space.graph("elsewhere.tflite")
    with pytest.raises(GenotypeError, match=r"no \.tflite file"):
        FileSpace.of_directory(tmp_path / "nothing")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(ModelFileError, match=r"broken\.tflite"):
        FileSpace([broken]).operation_keys()
