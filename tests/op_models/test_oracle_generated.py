"""Every operation that TensorFlow's converter writes for networks of the zoo can be generated from its key alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from op_models import generate, graph, zoo
from op_models.convert import installed_versions
from op_models.spec import OpSpec

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(len(installed_versions()) < 2, reason="TensorFlow is not installed (extra train)"),
]


# Hard swish, squeeze and excitation, explicit padding, rescaling inside; layer norm, attention, GELU, batched products.
@pytest.mark.parametrize(("name", "size"), [("mobilenet_v3_small", 64), ("attention_block", 16)])
def test_every_operation_of_a_converted_network_is_generated_from_its_key(name: str, size: int, tmp_path: Path) -> None:
    paths = zoo.files(name, size, ("float32", "float16", "int8"), classes=10, cache=tmp_path)
    keys = {group.spec.key for path in paths.values() for group in graph.read(path).groups}
    assert len(keys) > 40
    for key in sorted(keys):
        assert OpSpec.from_key(key).key == key
        generated = generate.network(key)
        assert [group.spec.key for group in graph.parse(generated).groups] == [key]
        interpreter = Interpreter(model_content=generated)
        interpreter.allocate_tensors()
        for place in interpreter.get_input_details():  # positive: an int8 RSQRT stops the program at 0
            interpreter.set_tensor(place["index"], np.ones(place["shape"], place["dtype"]))
        interpreter.invoke()
