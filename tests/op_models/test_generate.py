from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from op_models import generate, graph
from op_models.errors import NotLiftableError, OpModelError, SpecError
from op_models.layers import Precision
from op_models.spaces.registry import SPACES
from tests.op_models.built import NETWORKS
from tests.op_models.running import outputs_of

KEYS = sorted({group.spec.key for build in NETWORKS.values() for group in graph.parse(build()).groups})
CONV = "CONV_2D(f32[1x8x8x4],*f32[6x3x3x4],*f32[6])->f32[1x8x8x6];pad=same;stride=1x1"


@pytest.mark.parametrize("key", KEYS)
def test_what_is_generated_holds_the_operation_of_its_key_and_runs(key: str) -> None:
    data = generate.network(key)
    assert [group.spec.key for group in graph.parse(data).groups] == [key]
    for delegate in ("xnnpack", "none"):
        for output in outputs_of(data, delegate=delegate):
            assert output.size > 0
            if output.dtype.kind == "f":
                assert np.isfinite(output).all()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("space", SPACES)
def test_every_operation_of_every_space_can_be_generated(space: str, precision: Precision) -> None:
    for key in SPACES[space].operation_keys(precision):
        assert [group.spec.key for group in graph.parse(generate.network(key)).groups] == [key]


def test_the_seed_decides_the_weights_and_nothing_else() -> None:
    assert generate.network(CONV, 1) == generate.network(CONV, 1)
    assert generate.network(CONV, 1) != generate.network(CONV, 2)
    assert len(generate.network(CONV, 1)) == len(generate.network(CONV, 2))


@pytest.mark.parametrize("key", [CONV, "CONV_2D(i8.t[1x8x8x64],*i8.c[6x3x3x64],*i32.c[6])->i8.t[1x8x8x6];pad=same;stride=1x1"])
def test_signals_neither_vanish_nor_saturate(key: str) -> None:
    (output,) = outputs_of(generate.network(key))
    if output.dtype.kind == "f":
        assert 0.2 < output.std() < 5
    else:
        assert 10 < output.std() < 100
        assert np.mean(np.abs(output.astype(int)) >= 127) < 0.2


def test_small_constants_that_decide_the_work_are_written_as_they_are() -> None:
    key = "MEAN(f32[1x8x8x8],*i32[2]={1,2})->f32[1x8]"
    parsed = graph.parse(generate.network(key))
    (operator,) = parsed.operators
    values = graph.constant_values(parsed, operator.inputs[1])
    assert values is not None
    assert values.tolist() == [1, 2]


@pytest.mark.parametrize(
    "key",
    [
        "CUSTOM:Mine(f32[4])->f32[4];blob=0123456789ab",
        "CONV_2D(f32[1x8x8x4],~f32[6x3x3x4],*f32[6])->f32[1x8x8x6];pad=same;stride=1x1",
        "FULLY_CONNECTED(f32[1x8],*i4[5x8],_)->f32[1x5]",
        "PAD(f32[1x8x8x3],*i32[4x2]={0,0,1})->f32[1x10x10x3]",
        "RELU(*f32[4])->f32[4]",
        "RELU(f32[99999999999])->f32[99999999999]",
        "FULLY_CONNECTED(f32[1x99999],*f32[99999x99999],_)->f32[1x99999]",
        "CONV_2D(f32[1x8x8x4],*f32[6x3x3x4],*f32[6])->f32[1x8x8x6];pad=same;stride=ax1",
    ],
)
def test_a_key_that_cannot_be_written_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises((NotLiftableError, SpecError)) as caught:
        generate.network(key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "RELU", "relu(f32[4])->f32[4]", CONV + ";", CONV[:-3]])
def test_text_that_is_no_key_or_another_operation_is_refused(text: str) -> None:
    with pytest.raises(OpModelError):
        generate.network(text)


PIECES = [
    "f32",
    "i8",
    "i64",
    "bool",
    "str",
    "c64",
    ".t",
    "*",
    "~",
    "1",
    "0",
    "8",
    "valid",
    "2x2",
    "SOFTMAX",
    "=",
    "x",
    "9999999999",
]


@st.composite
def damaged_keys(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(KEYS))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(key) - 1))
        end = draw(st.integers(begin, min(len(key), begin + 5)))
        key = key[:begin] + draw(st.sampled_from(PIECES)) + key[end:]
    return key


@settings(max_examples=300)
@given(key=damaged_keys())
def test_any_key_gives_its_operation_or_one_of_our_errors(key: str) -> None:
    try:
        data = generate.network(key)
    except OpModelError:
        return
    assert [group.spec.key for group in graph.parse(data).groups] == [key]


def test_damaged_keys_reach_the_writer() -> None:
    """The property above is not about the parser alone."""

    def kinds() -> Iterator[str]:
        for place in range(len(CONV)):
            try:
                generate.network(CONV[:place] + "2" + CONV[place + 1 :])
                yield "written"
            except OpModelError as error:
                yield type(error).__name__

    assert {"written", "NotLiftableError", "SpecError"} <= set(kinds())
