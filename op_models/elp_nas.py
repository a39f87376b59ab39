"""The twelve operation models of ELP-NAS: four operations at three shapes, repeated N times in a chain.

Source: the system's published search space (3x3 and 5x5 separable convolutions, 3x3 average and max pooling, at
32x32x36, 16x16x72 and 8x8x144; N = 100, the mean of 100 runs divided by N). A separable convolution is ReLU, depthwise,
pointwise; networks apply it twice. They serve as the baseline that a table over all operations is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from op_models.layers import NetworkBuilder

Kind = Literal["sep3", "sep5", "avg3", "max3"]
SHAPES = ((32, 36), (16, 72), (8, 144))
COPIES = (1, 100)
"""Chain lengths that are measured: the published one, and 1 for the slope."""
RUNS = 100
"""Runs that the published statistic is the mean of."""


@dataclass(frozen=True, slots=True)
class ElpOperation:
    """One entry of the published table: an operation at one feature map."""

    kind: Kind
    size: int
    channels: int

    @property
    def name(self) -> str:
        """Such as ``sep3@32x32x36``."""
        return f"{self.kind}@{self.size}x{self.size}x{self.channels}"

    def chain(self, copies: int, seed: int = 0) -> bytes:
        """The op model with N = ``copies``, in float32."""
        network = NetworkBuilder("float32", seed, self.name)
        x = network.input((1, self.size, self.size, self.channels))
        for _ in range(copies):
            match self.kind:
                case "sep3" | "sep5":
                    window = 3 if self.kind == "sep3" else 5
                    x = network.conv2d(network.depthwise(network.relu(x), window), self.channels, 1)
                case "avg3":
                    x = network.avg_pool(x, 3, 1, "same")
                case "max3":
                    x = network.max_pool(x, 3, 1, "same")
        return network.build(x)


KINDS: tuple[Kind, ...] = ("sep3", "sep5", "avg3", "max3")
OPERATIONS = tuple(ElpOperation(kind, size, channels) for kind in KINDS for size, channels in SHAPES)
