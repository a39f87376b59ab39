"""TensorFlow's converter agrees with the graphs that op_models.spaces writes, operation for operation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from op_models import graph
from op_models.convert import convert_model, installed_versions, sample_inputs
from op_models.layers import Precision
from op_models.spaces.enas import EnasMicro
from op_models.spaces.nas_bench_201 import NasBench201
from tests.op_models import oracle_models

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(len(installed_versions()) < 2, reason="TensorFlow is not installed (extra train)"),
    pytest.mark.filterwarnings("default"),  # TensorFlow's own
]

SIZE = 16
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
ENAS = EnasMicro(depth=1, filters=8, size=SIZE)
NAS_BENCH = NasBench201(cells=1, channels=4, size=SIZE)


def operations(data: bytes) -> Counter[str]:
    return Counter(group.spec.key for group in graph.parse(data).groups)


def converted(model: Any) -> dict[str, Counter[str]]:
    samples = sample_inputs((SIZE, SIZE, 3), (0.0, 1.0), count=4, seed=0)
    files = convert_model(model, PRECISIONS, samples, name="oracle")
    return {precision: operations(file.data) for precision, file in files.items()}


@pytest.mark.parametrize(
    "text",
    [
        # every operation at both strides, loose ends of both cells from an input and from blocks
        "0 0 1 1 0 2 1 3 1 4 2 4 2 0 3 1 0 4 4 2 0 4 1 3 1 2 0 0 1 1 2 4 2 3 3 2 1 4 4 1",
        # one input unread by the reduction: it goes through a factorised reduction before the concatenation
        "0 1 0 4 0 2 0 2 2 3 3 0 0 3 0 3 5 4 1 2 1 0 1 4 1 2 1 2 2 3 3 0 1 3 1 3 5 4 4 2",
        # all blocks in a row: one loose end, no concatenation
        "0 0 1 4 2 1 2 4 3 2 3 4 4 3 4 4 5 0 5 4 0 2 1 4 2 4 2 3 3 2 3 4 4 3 4 4 5 1 5 4",
        # identities and equal pools alone: sums and pools that the converter merges
        "0 2 0 2 0 2 0 2 1 4 1 4 1 4 0 4 0 4 1 4 0 4 0 4 1 4 1 4 0 2 0 2 0 2 0 2 1 3 1 3",
    ],
)
def test_enas_micro_networks_are_what_tensorflow_makes_of_them(text: str) -> None:
    genotype = ENAS.parse(text)
    tensorflow = converted(oracle_models.enas(text, ENAS.depth, ENAS.filters, SIZE))
    for precision in PRECISIONS:
        assert operations(ENAS.graph(genotype, precision)) == tensorflow[precision]


@pytest.mark.parametrize("seed", range(2))
def test_random_enas_micro_networks_are_what_tensorflow_makes_of_them(seed: int) -> None:
    genotype = ENAS.random(np.random.default_rng(seed))
    tensorflow = converted(oracle_models.enas(ENAS.format(genotype), ENAS.depth, ENAS.filters, SIZE))
    for precision in PRECISIONS:
        assert operations(ENAS.graph(genotype, precision)) == tensorflow[precision]


@pytest.mark.parametrize(
    "text",
    [
        "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
        # nodes without a reader, edges without a source
        "|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|",
        # the same pool twice, a sum of one value with itself, sums of the same two values
        "|avg_pool_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|skip_connect~0|skip_connect~1|avg_pool_3x3~2|",
        # identities alone
        "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|none~0|none~1|skip_connect~2|",
        # the last batch norm folds into the only convolution before it
        "|nor_conv_1x1~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|",
        # it does not where the cell is one pool
        "|avg_pool_3x3~0|+|none~0|none~1|+|none~0|avg_pool_3x3~1|none~2|",
    ],
)
def test_nas_bench_201_networks_are_what_tensorflow_makes_of_them(text: str) -> None:
    tensorflow = converted(oracle_models.nas_bench_201(text, NAS_BENCH.cells, NAS_BENCH.channels, SIZE))
    for precision in PRECISIONS:
        assert operations(NAS_BENCH.graph(NAS_BENCH.parse(text), precision)) == tensorflow[precision]


@pytest.mark.parametrize("seed", range(6))
def test_random_nas_bench_201_networks_are_what_tensorflow_makes_of_them(seed: int) -> None:
    genotype = NAS_BENCH.random(np.random.default_rng(seed))
    text = NAS_BENCH.format(genotype)
    tensorflow = converted(oracle_models.nas_bench_201(text, NAS_BENCH.cells, NAS_BENCH.channels, SIZE))
    for precision in PRECISIONS:
        assert operations(NAS_BENCH.graph(genotype, precision)) == tensorflow[precision]
