"""Runs a model on LiteRT once, on seeded data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_models import feeds, graph


def outputs_of(data: bytes, *, delegate: str = "xnnpack", seed: int = 1) -> list[NDArray[Any]]:
    """What a model answers to :func:`op_models.feeds.network_inputs` of ``seed``."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN if delegate == "xnnpack" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter: Any = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    inputs = feeds.network_inputs(graph.parse(data), seed)
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]
