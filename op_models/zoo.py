"""Well-known networks with random weights and sane activations, as cached ``.tflite`` files.

Weights are never downloaded: a latency does not depend on them, but an int8 file's ranges do, and kernels whose time
depends on data see those ranges. So a network is not left as Keras initialises it. ``settle`` draws He-normal
kernels, batch-norm scales and shifts, and then sets every batch norm's statistics from one pass over sample images:
each layer's output is unit-like at any depth, as in a trained network, and the classifier is about as sure of
itself as a trained one. Left alone, activations of a deep network fade or blow up, int8 ranges collapse to a few
levels, and a ReLU meets data that no network has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from op_models.convert import KerasSource, cache_dir, convert, reseed, sample_inputs
from op_models.errors import ConvertError

BASE_SEED = 0
"""The seed whose float files are converted; float files of other seeds are reseeded copies of these."""

# How each family of keras.applications expects its images; networks that rescale inside take 0..255.
_PIXELS = (0.0, 255.0)
_SIGNED = (-1.0, 1.0)
_STANDARDISED = (-2.1, 2.6)  # mean and deviation of ImageNet taken out
_CENTRED = (-124.0, 151.0)  # only the mean taken out

_LOGIT_GAIN = 2.0  # He-normal logits of pooled features differ too little: every class would get the same probability
_SETTLE_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the zoo: how Keras calls it, the input sizes (pixels, or tokens) used here, smallest first."""

    keras_name: str
    sizes: tuple[int, ...]
    input_range: tuple[float, float]


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "mobilenet_v1": Network("MobileNet", (96, 160, 224), _SIGNED),
        "mobilenet_v2": Network("MobileNetV2", (96, 160, 224), _SIGNED),
        "mobilenet_v3_small": Network("MobileNetV3Small", (96, 160, 224), _PIXELS),
        "mobilenet_v3_large": Network("MobileNetV3Large", (96, 160, 224), _PIXELS),
        "efficientnet_b0": Network("EfficientNetB0", (96, 128, 224), _PIXELS),
        "resnet50": Network("ResNet50", (96, 128, 160), _CENTRED),
        "densenet121": Network("DenseNet121", (96, 128, 160), _STANDARDISED),
        "inception_v3": Network("InceptionV3", (96, 139, 203), _SIGNED),
        "nasnet_mobile": Network("NASNetMobile", (96, 160, 224), _SIGNED),
        "xception": Network("Xception", (96, 128), _SIGNED),
        "vgg16": Network("VGG16", (96, 128), _CENTRED),
        "squeezenet": Network("own:squeezenet", (96, 160, 224), _SIGNED),
        "efficientnet_lite0": Network("own:efficientnet_lite0", (96, 160, 224), _SIGNED),
        "attention_block": Network("own:attention_block", (49, 196), _STANDARDISED),
    }
)


def source(name: str, size: int, *, seed: int = BASE_SEED, classes: int = 1000) -> KerasSource:
    """What a converting process needs to build a network of the zoo.

    Raises :class:`ConvertError` for a name that the zoo does not have.
    """
    if name not in NETWORKS:
        raise ConvertError(name, f"the zoo has no such network; it has {', '.join(NETWORKS)}")
    return KerasSource(
        name=f"{name}-{size}" + (f"-c{classes}" if classes != 1000 else ""),
        builder="op_models.zoo:build",
        arguments=(("name", name), ("size", size), ("seed", seed), ("classes", classes)),
        seed=seed,
        input_range=NETWORKS[name].input_range,
    )


def files(
    name: str,
    size: int,
    precisions: Sequence[str],
    *,
    seed: int = BASE_SEED,
    classes: int = 1000,
    cache: Path | None = None,
) -> dict[str, Path]:
    """Cached files of one network by precision; what is missing is converted, in one process.

    float32 and float16 files of a seed other than ``BASE_SEED`` are those of ``BASE_SEED`` with reseeded weights: the
    same graph at no cost. int8 and dynamic files are always conversions of their own, with their own weights and
    ranges. Raises :class:`ConvertError`.
    """
    floats = [precision for precision in precisions if precision in ("float32", "float16")] if seed != BASE_SEED else []
    paths = convert(
        source(name, size, seed=seed, classes=classes),
        [precision for precision in precisions if precision not in floats],
        cache=cache,
    )
    if floats:
        base = convert(source(name, size, classes=classes), floats, cache=cache)
        for precision, path in base.items():
            paths[precision] = _reseeded(path, seed)
    return {precision: paths[precision] for precision in precisions}


def file(
    name: str,
    size: int,
    precision: str = "float32",
    seed: int = BASE_SEED,
    *,
    classes: int = 1000,
    cache: Path | None = None,
) -> Path:
    """One cached file of a network; see :func:`files`."""
    return files(name, size, (precision,), seed=seed, classes=classes, cache=cache)[precision]


def _reseeded(base: Path, seed: int) -> Path:
    path = base.with_name(base.name.replace(f"-s{BASE_SEED}-", f"-s{seed}-"))
    if not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(reseed(base.read_bytes(), seed))
        aside.replace(path)
    return path


# ---- what follows runs in the converting process only


def build(name: str, size: int, seed: int = BASE_SEED, classes: int = 1000) -> Any:
    """The Keras network with settled random weights; imports Keras."""
    import keras

    keras.utils.set_random_seed(seed)
    network = NETWORKS[name]
    kind, _, own = network.keras_name.partition(":")
    if kind == "own":
        model = _OWN[own](size, classes)
    else:
        model = getattr(keras.applications, kind)(weights=None, input_shape=(size, size, 3), classes=classes)
    samples = sample_inputs(tuple(model.inputs[0].shape[1:]), network.input_range, count=_SETTLE_SAMPLES, seed=seed + 1000)
    settle(model, samples, seed)
    return model


def settle(model: Any, samples: Any, seed: int) -> None:
    """Draw weights in place so that activations are unit-like from the first layer to the last.

    Kernels are He-normal, biases small, batch-norm scales around 1 and shifts around 0.5; batch-norm statistics are
    those of one training-mode pass over ``samples`` (shape (count, ...), float32) with dropout off. The shifts keep two
    thirds of a ReLU's inputs positive: around 0 a deep random network is chaotic, and the rounding of an int8 file
    grows from layer to layer until its output has nothing to do with the float one.
    """
    import keras
    import numpy as np

    rng = np.random.default_rng((seed, 0x3E77))
    last = None
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if isinstance(layer, keras.layers.BatchNormalization):
                if weight.name == "gamma":
                    weight.assign(rng.uniform(0.7, 1.3, shape))
                elif weight.name == "beta":
                    weight.assign(rng.normal(0.5, 0.5, shape))
            elif weight.name in ("kernel", "depthwise_kernel", "pointwise_kernel") and len(shape) in (2, 4):
                depthwise = weight.name == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
                fan_in = np.prod(shape[:2]) if depthwise else np.prod(shape[:-1])
                weight.assign(rng.normal(0, np.sqrt(2 / fan_in), shape))
                last = weight
            elif weight.name == "bias" and len(shape) == 1:
                weight.assign(rng.normal(0, 0.05, shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    if last is not None:
        last.assign(np.asarray(last) * _LOGIT_GAIN)
    model(samples, training=True)


def _squeezenet(size: int, classes: int) -> Any:
    """SqueezeNet 1.1: fire modules of a 1x1 squeeze and two expansions side by side."""
    from keras import Input, Model, layers

    def fire(features: Any, squeeze: int, expand: int) -> Any:
        squeezed = layers.Conv2D(squeeze, 1, activation="relu")(features)
        sides = [layers.Conv2D(expand, kernel, padding="same", activation="relu")(squeezed) for kernel in (1, 3)]
        return layers.Concatenate()(sides)

    inputs = Input((size, size, 3))
    features = layers.Conv2D(64, 3, strides=2, activation="relu")(inputs)
    for squeeze, expands in ((16, (64, 64)), (32, (128, 128)), (48, (192, 192))):
        features = layers.MaxPooling2D(3, strides=2)(features)
        for expand in expands:
            features = fire(features, squeeze, expand)
    for _ in range(2):
        features = fire(features, 64, 256)
    features = layers.Conv2D(classes, 1, activation="relu")(layers.Dropout(0.5)(features))
    return Model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(features)))


def _efficientnet_lite0(size: int, classes: int) -> Any:
    """EfficientNet-Lite0: B0's inverted residuals with ReLU6, without squeeze-and-excitation."""
    from keras import Input, Model, layers

    def conv(features: Any, filters: int, kernel: int, strides: int = 1, *, act: bool = True) -> Any:
        features = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(features)
        features = layers.BatchNormalization()(features)
        return layers.ReLU(6.0)(features) if act else features

    # (repeats, kernel, stride of the first, expansion, filters)
    stages = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    inputs = Input((size, size, 3))
    features = conv(inputs, 32, 3, 2)
    for repeats, kernel, stride, expansion, filters in stages:
        for repeat in range(repeats):
            shortcut = features
            if expansion != 1:
                features = conv(features, features.shape[-1] * expansion, 1)
            strides = 1 if repeat else stride
            features = layers.DepthwiseConv2D(kernel, strides, padding="same", use_bias=False)(features)
            features = layers.ReLU(6.0)(layers.BatchNormalization()(features))
            features = conv(features, filters, 1, act=False)
            if repeat:
                features = layers.Add()([shortcut, features])
    features = layers.GlobalAveragePooling2D()(conv(features, 1280, 1))
    return Model(inputs, layers.Dense(classes, activation="softmax")(layers.Dropout(0.2)(features)))


def _attention_block(tokens: int, classes: int) -> Any:
    """One pre-norm transformer block (width 192, 3 heads, GELU in the middle), pooled into a classifier."""
    from keras import Input, Model, layers

    width, heads = 192, 3
    inputs = Input((tokens, width))
    normed = layers.LayerNormalization()(inputs)
    features = layers.Add()([inputs, layers.MultiHeadAttention(heads, width // heads)(normed, normed)])
    hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(features))
    features = layers.Add()([features, layers.Dense(width)(hidden)])
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(features))
    return Model(inputs, layers.Dense(classes, activation="softmax")(pooled))


_OWN: dict[str, Callable[[int, int], Any]] = {
    "squeezenet": _squeezenet,
    "efficientnet_lite0": _efficientnet_lite0,
    "attention_block": _attention_block,
}
__all__ = ["BASE_SEED", "NETWORKS", "Network", "build", "cache_dir", "file", "files", "settle", "source"]
