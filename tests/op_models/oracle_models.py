"""Keras networks written from the published descriptions alone, which TensorFlow converts: the oracle of the spaces.

Nothing here looks at op_models.spaces; where the two agree, two readings of one description agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def weighted(model: Any, seed: int) -> Any:
    """The model with batch norms that are not the identity and a bias that is not 0, which the converter would drop."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "moving_variance":
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("moving_mean", "beta", "bias"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


class Micro:
    """Layers of the ENAS micro child network (Pham et al., 2018; wiring of the public ``micro_child.py``)."""

    def __init__(self, filters: int) -> None:
        from keras import layers

        self.layers = layers
        self.filters = filters

    def normed(self, features: Any, filters: int, kernel: int = 1, strides: int = 1, padding: str = "same") -> Any:
        """A convolution and its batch normalisation."""
        conv = self.layers.Conv2D(filters, kernel, strides, padding, use_bias=False)
        return self.layers.BatchNormalization()(conv(features))

    def squeezed(self, features: Any) -> Any:
        """ReLU, 1x1 convolution to this layer's filters, batch normalisation."""
        return self.normed(self.layers.ReLU()(features), self.filters)

    def halved(self, features: Any) -> Any:
        """Factorised reduction: pixels of even and of odd rows and columns, half of the filters each.

        The published pool of one pixel before each convolution is the convolution's stride, and the normalisation
        behind the concatenation is one in each branch: equal by arithmetic, and what a careful exporter writes.
        """
        shifted = self.layers.Cropping2D(((1, 0), (1, 0)))(features)
        halves = [self.normed(part, self.filters // 2, 1, 2, "valid") for part in (features, shifted)]
        return self.layers.Concatenate()(halves)

    def separable(self, features: Any, kernel: int, strides: int) -> Any:
        """Two separable convolutions; the first one may have a stride."""
        for stride in (strides, 1):
            conv = self.layers.SeparableConv2D(self.filters, kernel, stride, "same", use_bias=False)
            features = self.layers.BatchNormalization()(conv(self.layers.ReLU()(features)))
        return features

    def applied(self, operation: int, features: Any, strides: int) -> Any:
        """One of the five operations."""
        if operation == 0:
            return self.separable(features, 3, strides)
        if operation == 1:
            return self.separable(features, 5, strides)
        if operation == 2:
            return self.layers.AveragePooling2D(3, strides, "same")(features)
        if operation == 3:
            return self.layers.MaxPooling2D(3, strides, "same")(features)
        return features if strides == 1 else self.halved(features)

    def layer(self, previous: tuple[Any, Any], arc: list[int], strides: int) -> Any:
        """One layer: both inputs brought to this layer's filters, five blocks, loose ends joined."""
        old, new = previous
        if old.shape[1] != new.shape[1]:
            old = self.halved(self.layers.ReLU()(old))
        elif old.shape[-1] != self.filters:
            old = self.squeezed(old)
        if new.shape[-1] != self.filters:
            new = self.squeezed(new)
        states = [old, self.squeezed(new)]
        unread = {0, 1}
        for block in range(len(arc) // 4):
            results = []
            for source, operation in (arc[4 * block : 4 * block + 2], arc[4 * block + 2 : 4 * block + 4]):
                unread.discard(source)
                results.append(self.applied(operation, states[source], strides if source < 2 else 1))
            unread.add(len(states))
            states.append(self.layers.Add()(results))
        ends = [states[index] for index in sorted(unread)]
        smallest = min(end.shape[1] for end in ends)
        ends = [end if end.shape[1] == smallest else self.halved(end) for end in ends]
        return ends[0] if len(ends) == 1 else self.layers.Concatenate()(ends)


def enas(genotype: str, depth: int, filters: int, size: int, classes: int = 10, seed: int = 0) -> Any:
    """ENAS micro: ``3 * depth`` normal layers and two reductions; ``genotype`` is the public code's 40 numbers.

    The public code's classifier has no bias; the sizes published for its networks count one, so there is one here.
    """
    from keras import Input, Model, layers

    numbers = [int(number) for number in genotype.split()]
    normal, reduction = numbers[:20], numbers[20:]
    micro = Micro(filters)
    inputs = Input((size, size, 3))
    stem = micro.normed(inputs, 3 * filters, 3)
    previous = (stem, stem)
    for position in range(3 * depth + 2):
        reduces = position in (depth, 2 * depth + 1)
        if reduces:
            micro.filters *= 2
        output = micro.layer(previous, reduction if reduces else normal, 2 if reduces else 1)
        previous = (previous[1], output)
    features = layers.GlobalAveragePooling2D()(layers.ReLU()(previous[1]))
    return weighted(Model(inputs, layers.Dense(classes)(features)), seed)


def nas_bench_201(genotype: str, cells: int, channels: int, size: int, classes: int = 10, seed: int = 0) -> Any:
    """NAS-Bench-201 (Dong and Yang, 2020): three stages of equal cells; ``genotype`` is the published string.

    ``none`` adds nothing; an operation that reads a node to which nothing was added is not there. (In the published
    code it runs on zeros.) Strided convolutions have TensorFlow's padding.
    """
    from keras import Input, Model, layers

    def normed(features: Any, filters: int, kernel: int, strides: int = 1) -> Any:
        conv = layers.Conv2D(filters, kernel, strides, "same", use_bias=False)
        return layers.BatchNormalization()(conv(layers.ReLU()(features)))

    def edge(operation: str, features: Any, filters: int) -> Any:
        if operation == "skip_connect":
            return features
        if operation == "avg_pool_3x3":
            return layers.AveragePooling2D(3, 1, "same")(features)
        return normed(features, filters, {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[operation])

    def cell(features: Any, filters: int) -> Any:
        nodes = [features]
        for text in genotype.split("+"):
            terms = []
            for part in text.strip("|").split("|"):
                operation, _, source = part.partition("~")
                if operation != "none" and nodes[int(source)] is not None:
                    terms.append(edge(operation, nodes[int(source)], filters))
            total = terms[0] if terms else None
            for term in terms[1:]:
                total = layers.Add()([total, term])
            nodes.append(total)
        return nodes[-1]

    inputs = Input((size, size, 3))
    features = layers.Conv2D(channels, 3, padding="same", use_bias=False)(inputs)
    features = layers.BatchNormalization()(features)
    for stage in range(3):
        filters = channels << stage
        if stage:
            main = normed(normed(features, filters, 3, 2), filters, 3)
            pooled = layers.AveragePooling2D(2, 2)(features)
            features = layers.Add()([layers.Conv2D(filters, 1, padding="same", use_bias=False)(pooled), main])
        for _ in range(cells):
            features = cell(features, filters)
    features = layers.ReLU()(layers.BatchNormalization()(features))
    outputs = layers.Dense(classes)(layers.GlobalAveragePooling2D()(features))
    return weighted(Model(inputs, outputs), seed)


def broken(seed: int = 0) -> Any:
    """A builder that fails."""
    raise ValueError(f"no network for seed {seed}\nand a second line")


def not_finite(size: int = 8) -> Any:
    """A network whose output is NaN."""
    from keras import Input, Model, layers

    inputs = Input((size, size, 3))
    model = Model(inputs, layers.Conv2D(4, 1)(inputs))
    model.layers[-1].kernel.assign(np.full((1, 1, 3, 4), np.nan))
    return model
