"""Errors of the op_models package.

OpModelError
├── ModelFileError          a file that is no readable ``.tflite`` (truncated, hostile, another format)
├── UnsupportedModelError   a readable model that cannot be treated
│   ├── DynamicShapeError   a tensor on the way from input to output has no fixed shape
│   └── NotLiftableError    an operation that cannot be taken out of its network
├── SpecError               an operation key or specification that does not parse
├── GenotypeError           a genotype that its search space does not contain
├── ConvertError            TensorFlow could not convert a network, or converted it wrongly
└── CacheError              an artefact cache that cannot be read or written
"""

from __future__ import annotations

from collections.abc import Sequence


class OpModelError(Exception):
    """Root of everything that this package raises on bad input."""


class ModelFileError(OpModelError):
    """A file that cannot be read as a TensorFlow Lite model."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is not a readable .tflite model: {reason}")
        self.path, self.reason = path, reason


class UnsupportedModelError(OpModelError):
    """A well-formed model with something in it that cannot be measured or predicted."""

    def __init__(self, model: str, reason: str, operators: Sequence[str] = ()) -> None:
        named = f" ({', '.join(operators)})" if operators else ""
        super().__init__(f"{model}: {reason}{named}")
        self.model, self.reason, self.operators = model, reason, tuple(operators)


class DynamicShapeError(UnsupportedModelError):
    """A model whose work depends on a shape that is only known at run time."""


class NotLiftableError(UnsupportedModelError):
    """An operation that cannot run outside its network."""


class SpecError(OpModelError):
    """An operation key that does not follow the grammar of :mod:`op_models.spec`."""

    def __init__(self, text: str, reason: str) -> None:
        shown = text if len(text) <= 200 else text[:197] + "..."
        super().__init__(f"{shown!r} is not an operation key: {reason}")
        self.text, self.reason = text, reason


class GenotypeError(OpModelError):
    """A genotype that its search space cannot build."""

    def __init__(self, genotype: str, reason: str) -> None:
        super().__init__(f"genotype {genotype!r}: {reason}")
        self.genotype, self.reason = genotype, reason


class ConvertError(OpModelError):
    """A conversion by TensorFlow that failed or gave a model that computes something else."""

    def __init__(self, network: str, reason: str) -> None:
        super().__init__(f"converting {network} failed: {reason}")
        self.network, self.reason = network, reason


class CacheError(OpModelError):
    """The artefact cache cannot be used."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"artefact cache {path}: {reason}")
        self.path, self.reason = path, reason
