"""Keras networks to ``.tflite`` files, each in a process of its own, checked against Keras and kept in a cache.

TensorFlow (the extra ``train``) is imported in the child process only: it takes seconds and hundreds of megabytes,
talks on stdout, and keeps the memory of every conversion. One child builds one network and writes it in all the
precisions that were asked for: the float32 file is made once (variables frozen first, batch 1, hence no shape
arithmetic in the graph), and the int8 file is made from it by the converter's own calibration and quantiser, which
gives the graph that the long way gives, in a tenth of the time.

``reseed`` gives a float file other weights without TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from op_models.errors import CacheError, ConvertError, ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISIONS = ("float32", "float16", "dynamic", "int8")
"""``float16`` stores weights in half precision; ``dynamic`` stores them as int8 and computes ranges at run time;
``int8`` is integer throughout, input and output included."""

RECIPE_VERSION = 1
"""Part of the cache key: raise it when a conversion gives another file than before."""

CALIBRATION_SAMPLES = 8

# Largest root-mean-square error of the output beside Keras, as a share of the standard deviation of Keras' output. An
# unrelated output is off by 1.4. Random weights amplify rounding from layer to layer (training damps it), so the
# bounds of the quantised files only catch a wrong graph.
_ERROR_BOUND = {"float32": 1e-3, "float16": 0.1, "dynamic": 1.0, "int8": 1.0}

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class KerasSource:
    """A network that a child process can build.

    ``builder`` is ``package.module:function``; it is called with ``arguments`` after Keras' random seed has been set
    to ``seed`` and returns a ``keras.Model`` with one float input. ``input_range`` is what that input expects: the
    representative data of an int8 conversion is drawn in it.
    """

    name: str
    builder: str
    arguments: tuple[tuple[str, Scalar], ...] = ()
    seed: int = 0
    input_range: tuple[float, float] = (0.0, 1.0)

    def key(self, precision: str) -> str:
        """Content key of the converted file: everything that decides what is in it. 16 hexadecimal digits."""
        content = {
            "name": self.name,
            "builder": self.builder,
            "arguments": sorted(self.arguments),
            "seed": self.seed,
            "input_range": self.input_range,
            "precision": precision,
            "recipe": RECIPE_VERSION,
            "versions": installed_versions(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def installed_versions() -> dict[str, str]:
    """Versions of TensorFlow and Keras without importing them; empty where they are not installed."""
    versions = {}
    for package, names in {"tensorflow": ("tensorflow", "tensorflow_cpu"), "keras": ("keras",)}.items():
        for name in names:
            try:
                versions[package] = metadata.version(name)
                break
            except metadata.PackageNotFoundError:
                continue
    return versions


def cache_dir() -> Path:
    """Where converted files are kept: ``$ELP_LUT_CACHE/keras``, else the user's cache directory."""
    if root := os.environ.get("ELP_LUT_CACHE"):
        return Path(root) / "keras"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("elp-lut", appauthor=False)) / "keras"


def cached_path(source: KerasSource, precision: str, *, cache: Path | None = None) -> Path:
    """Where the converted file is or will be; the name is readable and ends in the content key."""
    return (cache or cache_dir()) / f"{source.name}-{precision}-s{source.seed}-{source.key(precision)}.tflite"


def convert(
    source: KerasSource,
    precisions: Sequence[str] = ("float32",),
    *,
    cache: Path | None = None,
    timeout_s: float = 1800.0,
) -> dict[str, Path]:
    """The network's files by precision, converted in one child process unless the cache has them.

    Beside each file lies a ``.json`` with its origin: versions, seconds, and the error of its output beside Keras.
    Raises :class:`ConvertError` where TensorFlow is missing, the builder or the converter fails, or a file computes
    something else than the Keras network (a refused file never reaches the cache), and :class:`CacheError` where the
    cache cannot be written.
    """
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ConvertError(source.name, f"no precision {', '.join(unknown)}; there are {', '.join(PRECISIONS)}")
    paths = {precision: cached_path(source, precision, cache=cache) for precision in precisions}
    missing = [precision for precision, path in paths.items() if not path.exists()]
    if missing:
        _convert_in_child(source, {precision: paths[precision] for precision in missing}, timeout_s)
    return paths


def _convert_in_child(source: KerasSource, paths: Mapping[str, Path], timeout_s: float) -> None:
    if len(installed_versions()) < 2:
        raise ConvertError(source.name, "tensorflow and keras are not installed (they are the extra 'train')")
    folder = next(iter(paths.values())).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(dir=folder, prefix=".converting-")
    except OSError as error:
        raise CacheError(str(folder), error.strerror or str(error)) from error
    with aside as scratch:
        float32 = cached_path(source, "float32", cache=folder)
        request = {
            "source": [source.name, source.builder, source.arguments, source.seed, source.input_range],
            "precisions": list(paths),
            "folder": scratch,
            "float32": str(float32) if list(paths) == ["int8"] and float32.exists() else None,
        }
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "KERAS_BACKEND": "tensorflow",
        }
        code = "from op_models.convert import run_child; run_child()"
        log = Path(scratch) / "log"
        with log.open("wb") as talk:
            child = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=talk, stderr=talk, env=environment
            )
            try:
                child.communicate(json.dumps(request).encode(), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise ConvertError(source.name, f"not finished after {timeout_s:.0f} s") from None
            finally:
                child.kill()
                child.wait()
        refusal = Path(scratch) / "refused"
        if refusal.exists():
            raise ConvertError(source.name, refusal.read_text())
        if child.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise ConvertError(source.name, f"the converting process ended with {child.returncode}: {last[0][:300]}")
        for precision, path in paths.items():
            (Path(scratch) / f"{precision}.json").replace(path.with_suffix(".json"))
            (Path(scratch) / f"{precision}.tflite").replace(path)


# ---- from here to reseed: what runs in the child


def run_child() -> None:
    """Body of the converting process: the request on stdin, files in its folder, a reason in ``refused`` on failure."""
    request = json.load(sys.stdin)
    name, builder, arguments, seed, input_range = request["source"]
    folder = Path(request["folder"])
    try:
        begin = time.perf_counter()
        if request["float32"]:
            float32 = Path(request["float32"]).read_bytes()
            build_s = 0.0
            files = {"int8": _requantised(float32, tuple(input_range), seed, name)}
        else:
            model = _built(builder, dict(arguments), seed)
            shape = tuple(model.inputs[0].shape[1:])
            samples = sample_inputs(shape, tuple(input_range), count=CALIBRATION_SAMPLES, seed=seed)
            build_s = time.perf_counter() - begin
            files = convert_model(model, request["precisions"], samples, name=name)
    except ConvertError as error:
        (folder / "refused").write_text(error.reason)
        return
    except Exception as error:  # whatever a builder or TensorFlow raises must reach the parent as one sentence
        (folder / "refused").write_text(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
        raise
    for precision, converted in files.items():
        origin = {
            "name": name,
            "builder": builder,
            "arguments": dict(arguments),
            "seed": seed,
            "precision": precision,
            "recipe": RECIPE_VERSION,
            "versions": installed_versions(),
            "sha256": hashlib.sha256(converted.data).hexdigest(),
            "error_frac": converted.error_frac,
            "build_s": round(build_s, 3),
            "convert_s": round(converted.convert_s, 3),
        }
        (folder / f"{precision}.json").write_text(json.dumps(origin, indent=1) + "\n")
        (folder / f"{precision}.tflite").write_bytes(converted.data)


def _built(builder: str, arguments: dict[str, Scalar], seed: int) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    module, _, function = builder.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def _requantised(float32: bytes, input_range: tuple[float, float], seed: int, name: str) -> Converted:
    """The int8 file of a float32 file that was compared with Keras when it was made; no network is built."""
    from ai_edge_litert.interpreter import Interpreter

    begin = time.perf_counter()
    interpreter = Interpreter(model_content=float32, num_threads=1)
    shape = tuple(map(int, interpreter.get_input_details()[0]["shape"][1:]))
    samples = sample_inputs(shape, input_range, count=CALIBRATION_SAMPLES, seed=seed)
    data = quantise(float32, samples)
    seconds = time.perf_counter() - begin
    return _accepted(data, "int8", samples, _outputs(float32, samples[:4]), seconds, name)


@dataclass(frozen=True, slots=True)
class Converted:
    """One converted file and its error: root mean square beside Keras, in standard deviations of Keras' output."""

    data: bytes
    error_frac: float
    convert_s: float


def convert_model(model: Any, precisions: Sequence[str], samples: NDArray[np.float32], *, name: str) -> dict[str, Converted]:
    """Convert a Keras model in this process, which imports TensorFlow; see :func:`convert` for the usual way.

    ``samples`` has shape (count, ...) and serves as representative data and for the comparison with Keras.
    Raises :class:`ConvertError` where a file's output is not Keras'.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConvertError(name, f"{len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one of each")
    signature = tf.TensorSpec((1, *samples.shape[1:]), tf.float32)
    traced = tf.function(lambda image: model(image, training=False)).get_concrete_function(signature)
    frozen = convert_variables_to_constants_v2(traced)
    expected = np.concatenate([np.asarray(frozen(tf.constant(sample[None]))[0]) for sample in samples[:4]])
    if not np.isfinite(expected).all():
        raise ConvertError(name, "the Keras network itself gives values that are not finite")

    def converter() -> Any:
        made = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        if precision != "float32":
            made.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            made.target_spec.supported_types = [tf.float16]
        return made

    files: dict[str, Converted] = {}
    float32: bytes | None = None
    for precision in sorted(precisions, key=PRECISIONS.index):
        begin = time.perf_counter()
        if precision == "int8":
            if float32 is None:
                float32 = bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())
            data = quantise(float32, samples)
        else:
            data = bytes(converter().convert())
        if precision == "float32":
            float32 = data
        seconds = time.perf_counter() - begin
        files[precision] = _accepted(data, precision, samples, expected, seconds, name)
    return files


def quantise(float32: bytes, samples: NDArray[np.float32]) -> bytes:
    """The full-integer file (int8 input and output) of a float32 file, ranges calibrated on ``samples``.

    These are the two steps that ``TFLiteConverter`` takes after it has made the float file, called on a float file
    that is there already. They are no public API: their interface is that of TensorFlow 2.16 to 2.21.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    calibrated = Calibrator(float32).calibrate(lambda: ([sample[None]] for sample in samples))
    return bytes(mlir_quantize(calibrated, fully_quantize=True, input_data_type=tf.int8, output_data_type=tf.int8))


def _accepted(
    data: bytes,
    precision: str,
    samples: NDArray[np.float32],
    expected: NDArray[np.float32],
    seconds: float,
    name: str,
) -> Converted:
    """The file with its error: root mean square beside ``expected``, in standard deviations of ``expected``."""
    outputs = _outputs(data, samples[: len(expected)])
    error_frac = float(np.sqrt(np.mean((outputs - expected) ** 2))) / (float(expected.std()) or 1.0)
    if not error_frac <= _ERROR_BOUND[precision]:  # also where it is NaN
        raise ConvertError(
            name,
            f"the {precision} file's output is off by {error_frac:.2g} standard deviations of Keras' output, "
            f"at most {_ERROR_BOUND[precision]:g} are accepted",
        )
    return Converted(data, error_frac, seconds)


def _outputs(data: bytes, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a file computes for float samples of shape (count, ...), as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for sample in samples:
        interpreter.set_tensor(source["index"], _to_integers(sample[None], source))
        interpreter.invoke()
        outputs.append(_to_floats(interpreter.get_tensor(result["index"]), result))
    return np.concatenate(outputs)


def _to_integers(values: NDArray[Any], tensor: Mapping[str, Any]) -> NDArray[Any]:
    scale, zero = tensor["quantization"]
    if not scale:
        return values.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    integers: NDArray[Any] = np.clip(np.round(values / scale + zero), limits.min, limits.max).astype(tensor["dtype"])
    return integers


def _to_floats(values: NDArray[Any], tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    scale, zero = tensor["quantization"]
    floats: NDArray[np.float32] = values.astype(np.float32)
    return (floats - np.float32(zero)) * np.float32(scale) if scale else floats


# ---- data and weights, without TensorFlow


def sample_inputs(shape: tuple[int, ...], input_range: tuple[float, float], *, count: int, seed: int) -> NDArray[np.float32]:
    """Seeded inputs of shape (count, *shape) inside ``input_range``, images as smooth as photographs roughly are.

    White noise alone would average out in the first convolution and leave the rest of a network with ranges that no
    picture gives; so noise on a 4 x 4, a 16 x 16 and the full grid is added up, at a contrast drawn for each image.
    """
    rng = np.random.default_rng((seed, 0x5EED))
    low, high = input_range
    if len(shape) != 3:
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)
    height, width, channels = shape
    rows, columns = np.arange(height), np.arange(width)
    images = 0.2 * rng.uniform(-1, 1, (count, *shape))
    for cells, weight in ((4, 0.5), (16, 0.3)):
        grid = rng.uniform(-1, 1, (count, cells, cells, channels))
        images += weight * grid[:, rows * cells // height][:, :, columns * cells // width]
    contrast = rng.uniform(0.5, 1.5, (count, 1, 1, 1))
    return (low + (high - low) * np.clip(0.5 + contrast * images / 2, 0, 1)).astype(np.float32)


# What broken offsets make the generated accessors and numpy raise.
_BROKEN = (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError, AssertionError, MemoryError)
_SMALLEST_WEIGHTS = 8  # elements; below lie the network's fixed numbers: a mean, 1/255, the 6 of a ReLU6


def reseed(data: bytes, seed: int) -> bytes:
    """A float ``.tflite`` with other weights: the same structure, shapes and distribution, other values.

    Every float32 or float16 constant of at least 8 elements is shuffled, kernels inside each output channel (the
    scale that batch normalisation left there stays), the rest as a whole. Takes about 10 ms a megaparameter.

    Raises :class:`ModelFileError` for bytes that are no model, and :class:`UnsupportedModelError` for a quantised one:
    its ranges belong to its weights, so other weights need a conversion of their own.
    """
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != b"TFL3":
        raise ModelFileError("bytes", "the identifier TFL3 is not at byte 4")
    copy = bytearray(data)
    try:
        model = schema.Model.GetRootAs(copy, 0)
        weights = _float_weights(model, schema)
    except _BROKEN as error:
        raise ModelFileError("bytes", f"its tables do not hold together ({type(error).__name__}: {error})") from error
    for index, values, channel_axis in weights:
        rng = np.random.default_rng((seed, index))
        rows = values.size if channel_axis is None else values.shape[channel_axis]
        if channel_axis is None or values.size // max(rows, 1) < 4:
            flat = values.reshape(-1)
            flat[:] = rng.permutation(flat)
        else:
            moved = np.moveaxis(values, channel_axis, 0)
            moved[:] = rng.permuted(moved.reshape(rows, -1), axis=1).reshape(moved.shape)
    return bytes(copy)


def _float_weights(model: Any, schema: Any) -> list[tuple[int, NDArray[Any], int | None]]:
    """(buffer, writable view into the file, axis of the output channels or None) of each float constant to shuffle."""
    dtypes = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
    found: dict[int, tuple[int, NDArray[Any], int | None]] = {}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            index = tensor.Buffer()
            buffer = model.Buffers(index)
            if buffer.Offset() > 1:
                raise UnsupportedModelError("model", "its weights lie behind the tables, where reseed does not look")
            if buffer.DataLength() == 0:
                continue
            shape = tuple(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
            if tensor.Type() in (schema.TensorType.INT8, schema.TensorType.UINT8) and len(shape) > 1:
                raise UnsupportedModelError("model", "quantised weights cannot be reseeded: wrong ranges")
            elements = int(np.prod(shape, dtype=np.int64))
            if tensor.Type() not in dtypes or elements < _SMALLEST_WEIGHTS or tensor.Sparsity() is not None:
                continue
            values = buffer.DataAsNumpy().view(dtypes[tensor.Type()]).reshape(shape)
            axis = None if len(shape) < 2 else len(shape) - 1 if shape[0] == 1 else 0
            found[index] = (index, values, axis)
    return list(found.values())
