"""The options of a ``.tflite`` operator as sorted texts, without what cannot change its cost."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from op_models.flatread import Reader

# Options that repeat what the tensors say, or that no kernel looks at while it computes.
_SAY_NOTHING = frozenset(
    {
        "quantized_bias_type",
        "new_shape",
        "pot_scale_int16",
        "num_channels",
        "depth_multiplier",
        "keep_num_dims",
        "values_count",
        "num",
        "num_splits",
        "in_data_type",
        "out_data_type",
        "out_type",
    }
)
_ALWAYS = frozenset({"pad"})
_RENAMED = {"padding": "pad", "fused_activation_function": "act"}
_PAIRS = {
    ("stride_h", "stride_w"): ("stride", None),
    ("filter_height", "filter_width"): ("window", None),
    ("dilation_h_factor", "dilation_w_factor"): ("dilation", "1x1"),
}
_CAMEL = re.compile(r"(?<!^)(?=[A-Z])")


def _names(enum: type) -> dict[int, str]:
    return {code: name.lower() for name, code in vars(enum).items() if name.isupper() and isinstance(code, int)}


_PADDING = _names(schema.Padding)
_ACTIVATION = _names(schema.ActivationFunctionType)


@lru_cache(maxsize=512)
def _fields(class_name: str) -> tuple[tuple[str, str, Any], ...]:
    """(attribute, its name here, default) of one generated options class, sorted by name here."""
    fresh = getattr(schema, class_name)()
    named = []
    for attribute, default in vars(fresh).items():
        snake = _CAMEL.sub("_", attribute).lower()
        named.append((attribute, _RENAMED.get(snake, snake), default))
    return tuple(sorted(named, key=lambda field: field[1]))


def _text_of(name: str, value: Any) -> str:
    if name == "pad" and isinstance(value, int):
        return _PADDING.get(value, str(value))
    if name == "act" and isinstance(value, int):
        return _ACTIVATION.get(value, str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple, np.ndarray)):
        return "x".join(_text_of("", item) for item in value)
    if isinstance(value, (int, str, np.generic)):
        return re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value))
    return type(value).__name__


_OPTIONS_TYPE, _OPTIONS = 3, 4  # slots of the schema's Operator


class OptionReader:
    """Option texts of the operators of one file; equal option tables are read once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._known: dict[tuple[int, str, bytes], tuple[tuple[str, str], ...]] = {}

    def texts(self, operator: int, name: str) -> tuple[tuple[str, str], ...]:
        """(name, value) texts of the options of the operator at this position; see :func:`option_texts`."""
        table = self._reader.table(operator, _OPTIONS)
        kind = self._reader.u8(operator, _OPTIONS_TYPE)
        if not table or not _all_scalars(kind) or name.startswith("CUSTOM:"):
            return self._read(operator, name)
        known = (kind, name, self._reader.content(table))
        if known not in self._known:
            self._known[known] = self._read(operator, name)
        return self._known[known]

    def _read(self, operator: int, name: str) -> tuple[tuple[str, str], ...]:
        accessor = schema.Operator()
        accessor.Init(self._reader.data, operator)
        return option_texts(accessor, name)


@lru_cache(maxsize=512)
def _all_scalars(kind: int) -> bool:
    """Whether an options table of this kind holds numbers alone, so that equal bytes mean equal options."""
    names = [name for name, code in vars(schema.BuiltinOptions).items() if code == kind and name[0] != "_"]
    fresh = getattr(schema, f"{names[0]}T", None) if names else None
    return fresh is not None and all(type(value) in (bool, int, float) for value in vars(fresh()).values())


def option_texts(operator: Any, name: str) -> tuple[tuple[str, str], ...]:
    """(name, value) texts of a generated ``Operator``'s options, sorted; defaults and idle options are left out."""
    options = schema.BuiltinOptionsCreator(operator.BuiltinOptionsType(), operator.BuiltinOptions())
    if options is None:
        options = schema.BuiltinOptions2Creator(operator.BuiltinOptions2Type(), operator.BuiltinOptions2())
    if name.startswith("CUSTOM:"):
        return _custom_texts(operator)
    if options is None:
        return ()
    values: dict[str, str] = {}
    for attribute, option, default in _fields(type(options).__name__):
        value = getattr(options, attribute)
        if option in _SAY_NOTHING or value is None:
            continue
        if option in _ALWAYS or not _same(value, default):
            values[option] = _text_of(option, value)
    for (first, second), (joined, silent) in _PAIRS.items():
        if first in values or second in values:
            height = values.pop(first, "1" if silent else "0")
            width = values.pop(second, "1" if silent else "0")
            if f"{height}x{width}" != silent:
                values[joined] = f"{height}x{width}"
    return tuple(sorted(values.items()))


def _same(value: Any, default: Any) -> bool:
    return type(value) in (bool, int, float, str, bytes) and bool(value == default)


def _custom_texts(operator: Any) -> tuple[tuple[str, str], ...]:
    import hashlib

    raw = operator.CustomOptionsAsNumpy()
    content = raw.tobytes() if isinstance(raw, np.ndarray) else b""
    return (("options_sha256", hashlib.sha256(content).hexdigest()[:12]),) if content else ()
