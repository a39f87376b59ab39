"""Tables of measured operations (LUTs), and predicting whole networks from them.

>>> import luts
>>> table = luts.load("phone.lut.json")              # doctest: +SKIP
>>> table.cost("network.tflite").latency_us          # doctest: +SKIP
1234.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luts.errors import LutError
    from luts.schema import Lut
    from luts.storage import load, save

__all__ = ["Lut", "LutError", "load", "save"]

_HOME = {"Lut": "luts.schema", "LutError": "luts.errors", "load": "luts.storage", "save": "luts.storage"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a command pays only for what it needs."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
