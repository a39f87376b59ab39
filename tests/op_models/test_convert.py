"""Converting Keras networks, the cache of converted files, and reseeding: what needs no TensorFlow, and what does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given
from hypothesis import strategies as st

from op_models import convert as conversion
from op_models import graph, zoo
from op_models.builder import GraphBuilder
from op_models.convert import (
    KerasSource,
    cached_path,
    convert,
    convert_model,
    installed_versions,
    reseed,
    sample_inputs,
)
from op_models.errors import CacheError, ConvertError, ModelFileError, OpModelError, UnsupportedModelError
from op_models.layers import NetworkBuilder, Precision

SOURCE = KerasSource("tiny", "tests.op_models.oracle_models:nas_bench_201", (("cells", 1),), input_range=(0.0, 1.0))


def network(precision: Precision = "float32", seed: int = 3) -> bytes:
    """Every layout of weights: convolution, depthwise, dense, and constants of a scale and a shift."""
    builder = NetworkBuilder(precision, seed)
    x = builder.conv2d(builder.input((1, 8, 8, 3)), 16, 3)
    x = builder.scale_shift(builder.depthwise(x, 3), "relu")
    return builder.build(builder.fully_connected(builder.mean(x), 10))


def constants(data: bytes) -> list[np.ndarray]:
    """The float constants of a file, in order."""
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    stored = {tensor.index for tensor in graph.parse(data).tensors if tensor.is_const and tensor.dtype in ("f32", "f16")}
    return [interpreter.get_tensor(index) for index in sorted(stored)]


def output(data: bytes) -> np.ndarray:
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]
    interpreter.set_tensor(place["index"], np.ones(place["shape"], place["dtype"]))
    interpreter.invoke()
    result: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return result


def operations(data: bytes) -> Counter[str]:
    return Counter(group.spec.key for group in graph.parse(data).groups)


# ---- reseed


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_reseeding_changes_every_weight_tensor_but_neither_structure_nor_distribution(precision: Precision) -> None:
    before = network(precision)
    after = reseed(before, 1)
    assert len(after) == len(before)
    assert operations(after) == operations(before)
    for old, new in zip(constants(before), constants(after), strict=True):
        assert old.min() == old.max() or not np.array_equal(old, new)
        assert np.array_equal(np.sort(old, axis=None), np.sort(new, axis=None))
    assert np.isfinite(output(after)).all()
    assert not np.allclose(output(after), output(before))


def test_reseeding_leaves_the_scale_of_each_output_channel() -> None:
    before = network()
    for old, new in zip(constants(before), constants(reseed(before, 1)), strict=True):
        if old.ndim == 4:
            channels = (0, 1, 2) if old.shape[0] == 1 else (1, 2, 3)
            np.testing.assert_allclose(old.std(axis=channels), new.std(axis=channels), rtol=1e-5)


def test_a_seed_decides_the_weights() -> None:
    data = network()
    assert reseed(data, 7) == reseed(data, 7)
    assert reseed(data, 7) != reseed(data, 8)


def test_reseeding_keeps_the_fixed_numbers_of_a_network() -> None:
    builder = GraphBuilder("rescaling")
    pixels = builder.input((1, 4, 4, 3))
    scaled = builder.tensor((1, 4, 4, 3))
    builder.op("MUL", [pixels, builder.constant(np.array([0.1, 0.2, 0.3], np.float32))], [scaled])
    builder.output(scaled)
    data = builder.build()
    assert reseed(data, 1) == data


def test_a_quantised_file_is_not_reseeded() -> None:
    with pytest.raises(UnsupportedModelError, match="quantised"):
        reseed(network("int8"), 1)


@given(cut=st.integers(0, 4000), patches=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6))
def test_reseeding_a_hostile_file_is_refused_or_harmless(cut: int, patches: list[tuple[int, int]]) -> None:
    data = bytearray(network())
    for place, value in patches:
        data[place % len(data)] = value
    try:
        reseed(bytes(data[: len(data) - cut]), 1)
    except OpModelError as error:
        told = str(error)
    else:
        told = "reseeded"
    assert told


def test_what_is_no_model_is_refused_by_name() -> None:
    with pytest.raises(ModelFileError, match="TFL3"):
        reseed(b"no model at all", 1)


# ---- inputs, keys, cache


@given(
    size=st.integers(1, 40),
    low=st.floats(-200, 0),
    span=st.floats(0.5, 300),
    seed=st.integers(0, 2**31),
)
def test_sample_inputs_lie_in_their_range(size: int, low: float, span: float, seed: int) -> None:
    samples = sample_inputs((size, size, 3), (low, low + span), count=2, seed=seed)
    assert samples.shape == (2, size, size, 3)
    assert samples.dtype == np.float32
    assert samples.min() >= np.float32(low) - 1e-3
    assert samples.max() <= np.float32(low + span) + 1e-3
    assert np.array_equal(samples, sample_inputs((size, size, 3), (low, low + span), count=2, seed=seed))


def test_sample_images_are_smoother_than_white_noise() -> None:
    image = sample_inputs((64, 64, 3), (0.0, 1.0), count=1, seed=0)[0]
    assert np.abs(np.diff(image, axis=0)).mean() < 0.6 * image.std()  # white noise: 1.15


def test_everything_that_decides_the_file_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "installed_versions", lambda: {"tensorflow": "1", "keras": "1"})
    keys = {
        SOURCE.key("float32"),
        SOURCE.key("int8"),
        replace(SOURCE, name="other").key("float32"),
        replace(SOURCE, builder="tests.op_models.oracle_models:enas").key("float32"),
        replace(SOURCE, arguments=(("cells", 2),)).key("float32"),
        replace(SOURCE, seed=1).key("float32"),
        replace(SOURCE, input_range=(0.0, 255.0)).key("float32"),
    }
    monkeypatch.setattr(conversion, "installed_versions", lambda: {"tensorflow": "2", "keras": "1"})
    keys.add(SOURCE.key("float32"))
    assert len(keys) == 8


def test_a_cached_file_is_given_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "installed_versions", dict)
    path = cached_path(SOURCE, "float32", cache=tmp_path)
    path.write_bytes(network())
    assert convert(SOURCE, ["float32"], cache=tmp_path) == {"float32": path}
    with pytest.raises(ConvertError, match="extra 'train'"):
        convert(SOURCE, ["float32", "int8"], cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "installed_versions", lambda: {"tensorflow": "1", "keras": "1"})
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"artefact cache .*file"):
        convert(SOURCE, cache=tmp_path / "file")


def test_an_unknown_precision_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConvertError, match="no precision int4; there are float32, float16, dynamic, int8"):
        convert(SOURCE, ["int4"])


def test_a_network_that_the_zoo_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConvertError, match=r"alexnet.*mobilenet_v1"):
        zoo.file("alexnet", 224)


def test_float_files_of_other_seeds_are_reseeded_copies(tmp_path: Path) -> None:
    base = cached_path(zoo.source("mobilenet_v1", 96), "float16", cache=tmp_path)
    base.write_bytes(network("float16"))
    other = zoo.file("mobilenet_v1", 96, "float16", seed=4, cache=tmp_path)
    assert other.read_bytes() == reseed(base.read_bytes(), 4)
    assert zoo.file("mobilenet_v1", 96, "float16", seed=4, cache=tmp_path) == other
    assert zoo.file("mobilenet_v1", 96, "float16", cache=tmp_path) == base


# ---- with TensorFlow

needs_tensorflow = pytest.mark.skipif(len(installed_versions()) < 2, reason="TensorFlow is not installed (extra train)")
TINY = KerasSource(
    "tiny",
    "tests.op_models.oracle_models:nas_bench_201",
    (
        ("genotype", "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"),
        ("cells", 1),
        ("channels", 4),
        ("size", 8),
    ),
)


@pytest.mark.train
@needs_tensorflow
def test_one_process_converts_to_all_precisions_quietly_and_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = convert(TINY, conversion.PRECISIONS, cache=tmp_path)
    assert capfd.readouterr() == ("", "")
    made = {path: path.stat().st_mtime_ns for path in paths.values()}
    for path in made:
        assert [size for tensor in graph.read(path).tensors for size in tensor.shape if size < 1] == []
        assert '"error_frac"' in path.with_suffix(".json").read_text()
    assert graph.read(paths["int8"]).tensors[graph.read(paths["int8"]).inputs[0]].dtype == "i8"
    assert convert(TINY, conversion.PRECISIONS, cache=tmp_path) == paths
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list(tmp_path.iterdir())) == 2 * len(made)

    # Quantised once more, now from the cached float32 file: the same file without building the network.
    whole = paths["int8"].read_bytes()
    paths["int8"].unlink()
    assert convert(TINY, ["int8"], cache=tmp_path)["int8"].read_bytes() == whole
    assert '"build_s": 0.0' in paths["int8"].with_suffix(".json").read_text()


@pytest.mark.train
@needs_tensorflow
@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        ("broken", "ValueError: no network for seed 0$"),
        ("not_finite", "not finite"),
        ("absent", "AttributeError"),
    ],
)
def test_a_network_that_fails_is_one_sentence_and_leaves_no_file(tmp_path: Path, builder: str, reason: str) -> None:
    with pytest.raises(ConvertError, match=reason) as caught:
        convert(KerasSource("bad", f"tests.op_models.oracle_models:{builder}"), cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.train
@needs_tensorflow
@pytest.mark.filterwarnings("default")  # TensorFlow's own
def test_quantising_the_float_file_gives_what_the_converter_gives() -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from tests.op_models import oracle_models

    model = oracle_models.nas_bench_201(**dict(TINY.arguments))  # type: ignore[arg-type]
    samples = sample_inputs((8, 8, 3), (0.0, 1.0), count=4, seed=0)
    ours = convert_model(model, ["int8"], samples, name="tiny")["int8"].data

    signature = tf.TensorSpec((1, 8, 8, 3), tf.float32)
    frozen = convert_variables_to_constants_v2(tf.function(model).get_concrete_function(signature))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    theirs = converter.convert()

    assert operations(ours) == operations(theirs)
    assert np.array_equal(output(ours), output(theirs))


@pytest.mark.train
@needs_tensorflow
def test_int8_networks_of_the_zoo_use_the_levels_they_have(tmp_path: Path) -> None:
    path = zoo.files("mobilenet_v2", 64, ["int8"], classes=10, cache=tmp_path)["int8"]
    interpreter = Interpreter(
        model_path=str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]
    scale, zero = place["quantization"]
    picture = sample_inputs((64, 64, 3), (-1.0, 1.0), count=1, seed=99)
    interpreter.set_tensor(place["index"], np.clip(np.round(picture / scale + zero), -128, 127).astype(np.int8))
    interpreter.invoke()
    levels = [
        len(np.unique(interpreter.get_tensor(tensor.index)))
        for tensor in graph.read(path).tensors
        if tensor.dtype == "i8" and not tensor.is_const and np.prod(tensor.shape) >= 500
    ]
    assert len(levels) > 40
    assert min(levels) >= 32
    assert np.median(levels) >= 96
