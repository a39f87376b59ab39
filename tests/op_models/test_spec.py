"""Claims about operation keys: every specification has one, it reads back, and anything else is a SpecError."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from op_models import graph as graphs
from op_models.errors import SpecError
from op_models.spec import DTYPE_SIZE_BYTES, QUANTS, ROLES, OpSpec, Step, TensorSpec
from tests.op_models import built

OPTION_TEXT = string.ascii_letters + string.digits + "_.+-"


@st.composite
def tensors(draw: st.DrawFn, roles: tuple[str, ...] = ROLES) -> TensorSpec:
    role = draw(st.sampled_from(roles))
    values = None
    if role == "const":
        values = draw(st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple))
    return TensorSpec(
        shape=tuple(draw(st.lists(st.integers(0, 10_000), max_size=5))),
        dtype=draw(st.sampled_from(sorted(DTYPE_SIZE_BYTES))),
        quant=draw(st.sampled_from(QUANTS)),
        role=role,
        values=values,
    )


@st.composite
def specs(draw: st.DrawFn) -> OpSpec:
    """Any specification that a graph can give: the first step reads an activation, later ones may refer back."""
    steps: list[Step] = []
    activations = 0
    for number in range(draw(st.integers(1, 3))):
        inputs: list[TensorSpec | int | None] = []
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(["tensor", "absent", "step", "again"]))
            if kind == "step" and number:
                inputs.append(draw(st.integers(0, number - 1)))
            elif kind == "again" and activations:
                inputs.append(-draw(st.integers(1, activations)))
            elif kind == "absent":
                inputs.append(None)
            else:
                tensor = draw(tensors())
                activations += tensor.role == "act"
                inputs.append(tensor)
        name = draw(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True))
        if draw(st.booleans()):
            name = "CUSTOM:" + draw(st.text(OPTION_TEXT, min_size=1, max_size=20))
        options = draw(
            st.dictionaries(st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True), st.text(OPTION_TEXT, max_size=8), max_size=3)
        )
        outputs = tuple(draw(st.lists(tensors(roles=("act",)), min_size=1, max_size=3)))
        steps.append(Step(name, tuple(sorted(options.items())), tuple(inputs), outputs))
    return OpSpec(tuple(steps))


@given(specs())
def test_a_key_reads_back_as_the_specification(spec: OpSpec) -> None:
    read = OpSpec.from_key(spec.key)
    assert read == spec
    assert read.key == spec.key
    assert hash(read) == hash(spec)


@given(specs(), specs())
def test_different_specifications_have_different_keys(first: OpSpec, second: OpSpec) -> None:
    assume(first != second)
    assert first.key != second.key


@given(st.text())
def test_any_text_is_a_key_or_a_spec_error(text: str) -> None:
    try:
        spec = OpSpec.from_key(text)
    except SpecError as error:
        assert error.text == text
        assert error.reason
    else:
        assert spec.key == text or OpSpec.from_key(spec.key) == spec


@pytest.mark.parametrize("template", ["RELU(f32[{}])->f32[1]", "RELU(f32[1])->f32[2x{}]", "PAD(*i32[1]={{{}}})->f32[1]"])
def test_a_number_of_thousands_of_digits_is_a_spec_error(template: str) -> None:
    with pytest.raises(SpecError):
        OpSpec.from_key(template.format("9" * 5000))


@given(specs(), st.data())
def test_a_damaged_key_is_another_key_or_a_spec_error(spec: OpSpec, data: st.DataObject) -> None:
    key = spec.key
    at = data.draw(st.integers(0, len(key) - 1))
    damaged = key[:at] + data.draw(st.text(st.characters(max_codepoint=0x17F), max_size=2)) + key[at + 1 :]
    assume(damaged != key)
    try:
        read = OpSpec.from_key(damaged)
    except SpecError:
        return
    assert OpSpec.from_key(read.key) == read


@given(st.text("()[]{}|;,=%@_*~.->x0123456789fiF", max_size=60))
def test_texts_of_the_grammars_own_characters_are_keys_or_spec_errors(text: str) -> None:
    for prefix in ("", "RELU(f32[1])->f32[1]", "ADD("):
        try:
            OpSpec.from_key(prefix + text)
        except SpecError as error:
            assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "operator's name"),
        ("RELU", r"expected '\('"),
        ("RELU(f32[1x])->f32[1]", "dimension before"),
        ("RELU(q7[1])->f32[1]", "expected a tensor"),
        ("RELU(f32[1])", "expected '->'"),
        ("RELU(%0)->f32[1]", "reads the output of step 0"),
        ("RELU(f32[1])->f32[1]|ADD(%1,@0)->f32[1]", "reads the output of step 1"),
        ("MUL(f32[1],@1)->f32[1]", "repeats an input"),
        ("RELU(f32[1])->f32[1] ", r"expected '\|'"),
        ("relu(f32[1])->f32[1]", "operator's name"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(text: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        OpSpec.from_key(text)


def test_a_long_wrong_key_is_shortened_in_the_message() -> None:
    with pytest.raises(SpecError) as caught:
        OpSpec.from_key("RELU(" * 1000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("network", sorted(built.NETWORKS))
def test_keys_of_a_network_read_back(network: str) -> None:
    for group in graphs.parse(built.NETWORKS[network]()).groups:
        assert OpSpec.from_key(group.spec.key) == group.spec


def test_the_parts_of_a_specification_are_told_apart() -> None:
    spec = OpSpec.from_key(
        "PAD(f32[1x4x4x2],*i32[4x2]={0,0,1,1,1,1,0,0})->f32[1x6x6x2]|CONV_2D(%0,~f16[3x3x3x2],_)->f32[1x4x4x3];pad=valid;stride=1x1"
    )
    assert spec.name == "PAD+CONV_2D"
    assert [tensor.text for tensor in spec.activations] == ["f32[1x4x4x2]"]
    assert [tensor.role for tensor in spec.constants] == ["const", "folded"]
    assert spec.constants[1].size_bytes == 3 * 3 * 3 * 2 * 2
    assert [tensor.shape for tensor in spec.outputs] == [(1, 4, 4, 3)]
    assert spec.steps[1].option("stride") == "1x1"
    assert spec.steps[1].option("dilation", "1x1") == "1x1"


def test_a_scalar_has_one_element_and_an_empty_tensor_none() -> None:
    assert TensorSpec((), "f32").elements == 1
    assert TensorSpec((3, 0), "f32").elements == 0
    assert TensorSpec((5,), "i4").size_bytes == 2
