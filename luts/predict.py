"""Predicts networks from a table: ``python -m luts.predict NETWORK.tflite --lut TABLE``."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luts.errors import RequestError
from luts.intervals import Floats, prediction_interval
from luts.lookup import CostTable, Miss
from luts.schema import Lut
from op_models.feeds import variant
from op_models.locality import footprint_bytes, mixture
from op_models.spec import OpSpec, Step, TensorSpec

if TYPE_CHECKING:
    import argparse

    from op_models.graph import Graph

__all__ = ["Part", "Prediction", "predict"]

# Standard deviations of how mixed the signs are that an operation meets: estimated from the network's weights, or
# known from other networks alone (18 ENAS micro networks, seed 907); and of the cost where the table does not tell its ends.
_MIXING_ERROR = 0.065
_UNKNOWN_MIXING = 0.15
_UNKNOWN_FRAC = 0.15
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
# What a prediction's flags mean, for people.
FLAG_MEANINGS = {
    "partial": "a lower bound: operations without a measurement count as nothing",
    "prior-discrepancy": "the interval rests on a shipped guess; luts.calibrate learns the device's own discrepancy",
    "hybrid-quantised": "float32 operations with 8-bit weights depend on where buffers lie: nothing is promised",
    "data-dependent": "stand-alone 8-bit activations cost what the signs of their data make them, which is estimated",
    "no-cache-size": "the table does not tell the device's caches; usual sizes are assumed",
    "no-floor": "the table does not tell what an empty model costs",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One operation's share of a prediction, in the order of execution."""

    key: str
    latency_us: float
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of one network with its 95 % prediction interval.

    ``coverage_frac`` is the share of the network's operations that the table holds. With misses the figures are lower
    bounds: ``lower_bound`` is true, ``latency_us_high`` infinite and ``flags`` contain ``partial``. ``parts`` are in
    the order of execution and, with ``overhead_us``, sum up to ``latency_us``; a missing operation has no part.
    ``cold_frac`` and ``far_frac`` say how much of the way from *hot* to *cold* and from *cold* to *far* the network's
    footprint puts it.
    """

    network: str
    latency_us: float
    latency_us_low: float
    latency_us_high: float
    coverage_frac: float
    misses: tuple[Miss, ...]
    parts: tuple[Part, ...]
    overhead_us: float
    cold_frac: float
    far_frac: float
    flags: tuple[str, ...]

    @property
    def lower_bound(self) -> bool:
        """Whether operations are missing, so that the network costs at least this."""
        return bool(self.misses)

    def as_json(self, *, parts: bool = False) -> dict[str, Any]:
        """The prediction as JSON values; an unknown upper end is null."""
        found: dict[str, Any] = {
            "network": self.network,
            "latency_us": round(self.latency_us, 3),
            "latency_us_low": round(self.latency_us_low, 3),
            "latency_us_high": round(self.latency_us_high, 3) if math.isfinite(self.latency_us_high) else None,
            "coverage_frac": round(self.coverage_frac, 6),
            "lower_bound": self.lower_bound,
            "misses": [
                {"key": miss.key, "count": miss.count, "nearest": list(miss.nearest), "reason": miss.reason}
                for miss in self.misses
            ],
            "flags": list(self.flags),
        }
        if parts:
            found["overhead_us"] = round(self.overhead_us, 3)
            found["cold_frac"], found["far_frac"] = round(self.cold_frac, 4), round(self.far_frac, 4)
            found["parts"] = [
                {"key": part.key, "latency_us": round(part.latency_us, 4), "flags": list(part.flags)} for part in self.parts
            ]
        return found


def predict(
    network: Graph | Path | str,
    lut: Lut | CostTable,
    *,
    partial: bool = False,
) -> Prediction:
    """Predict a network (a graph, or the path of a ``.tflite`` file) from a table.

    The total is the floor plus, over all groups that the runtime executes, hot + a * (cold - hot) + b * (far - cold),
    all times the calibration's scale; a and b follow from the network's footprint. A :class:`~luts.schema.Lut` with
    several settings must be narrowed by :meth:`Lut.table` first.

    Raises :class:`~luts.errors.UnknownOpError` for an operation that the table lacks unless ``partial``;
    :class:`~luts.errors.SettingError`; :class:`~op_models.errors.OpModelError` for an unreadable or unsupported file.
    """
    from op_models import graph as graphs

    table = lut.table() if isinstance(lut, Lut) else lut
    graph = network if isinstance(network, graphs.Graph) else graphs.read(network)
    keys = [group.spec.key for group in graphs.groups(graph)]
    return predict_keys(keys, table, network=graph.name, partial=partial, mixings=_mixings(graph, keys))


def _mixings(graph: Graph, keys: Sequence[str]) -> Mapping[int, float]:
    if not any("data-dependent" in _flags_of(key) for key in set(keys)):
        return {}
    from op_models.signs import mixings

    return mixings(graph)


def predict_keys(
    keys: Sequence[str],
    table: CostTable,
    *,
    network: str = "",
    partial: bool = False,
    shares: tuple[float, float] | None = None,
    mixings: Mapping[int, float] | None = None,
) -> Prediction:
    """Predict from the keys of a network's operations, in order of execution.

    ``shares`` are the shares of *cold* and of *far*; without them they follow from the network's footprint. ``mixings``
    says for places in ``keys`` how mixed the signs are that a branching operation meets (:mod:`op_models.signs`); one
    without it costs what it cost in the network that it was lifted from, with a wider interval. Raises as
    :func:`predict`, and :class:`~op_models.errors.SpecError` for a key that is no operation.
    """
    if shares is None:
        cold, far = (float(share) for share in mixture(float(footprint_bytes(keys)), table.caches))
    else:
        cold, far = shares
    weights = np.array([1.0, cold, far])
    rows = table.rows
    where = np.fromiter((rows.index.get(key, -1) for key in keys), dtype=np.intp, count=len(keys))
    known = np.flatnonzero(where >= 0)
    misses: tuple[Miss, ...] = ()
    if known.size < len(keys):
        misses = table.misses(keys)
        if not partial:
            raise table.unknown(misses)
    at = where[known]
    scale = table.scale
    each = scale * (weights @ rows.steps)[at]
    overhead = scale * table.floor_us
    # By counts, not in order of execution: networks of the same operations cost the same to the last digit, and an
    # operation that occurs m times is off by m times the same error.
    counts = np.bincount(at, minlength=len(rows.index)).astype(np.float64)
    unsure_us = _mixed(keys, known, at, each, counts, table, scale * (weights @ rows.steps), mixings or {})
    with np.errstate(over="ignore", invalid="ignore"):
        total = scale * float((rows.steps @ counts) @ weights) + overhead
    if not math.isfinite(total) or total < 0 or (total == 0 and known.size):
        raise RequestError(
            f"the table's entries add up to {total:.4g} us for {network or 'the network'}; luts.lint tells which are wrong"
        )
    replicates = scale * (weights @ (counts @ rows.replicates))
    variance = (weights**2) @ ((rows.spread**2) @ counts**2)
    lows, highs = prediction_interval(
        np.array([total]), replicates[None, :], math.hypot(scale * math.sqrt(float(variance)), unsure_us), table.discrepancy_log
    )
    parts = tuple(
        Part(keys[position], latency, rows.flags[row])
        for position, latency, row in zip(known.tolist(), each.tolist(), at.tolist(), strict=True)
    )
    return Prediction(
        network=network,
        latency_us=total,
        latency_us_low=float(lows[0]),
        latency_us_high=math.inf if misses else float(highs[0]),
        coverage_frac=1.0 if not keys else known.size / len(keys),
        misses=misses,
        parts=parts,
        overhead_us=overhead,
        cold_frac=cold,
        far_frac=far,
        flags=_flags(table, keys, parts, bool(misses)),
    )


def _mixed(
    keys: Sequence[str],
    known: npt.NDArray[np.intp],
    at: npt.NDArray[np.intp],
    each: Floats,
    counts: Floats,
    table: CostTable,
    costs: Floats,
    mixings: Mapping[int, float],
) -> float:
    """Put operations that branch on their data between their cost on one sign and on even signs, in place.

    ``each`` [places] and ``counts`` [rows] are changed. Returns the standard deviation, in us, that not knowing the data
    leaves in the total: the errors of a network's operations have one cause, so they add up.
    """
    index = table.rows.index
    unsure_us = 0.0
    for place, position in enumerate(known.tolist()):
        key = keys[position]
        if "data-dependent" not in _flags_of(key):
            continue
        one, even = index.get(variant(key, "one")), index.get(variant(key, "even"))
        if one is None or even is None:
            unsure_us += _UNKNOWN_FRAC * float(each[place])
            continue
        span = float(costs[even] - costs[one])
        mixing = mixings.get(position)
        if mixing is None:
            unsure_us += _UNKNOWN_MIXING * span
            continue
        counts[at[place]] -= 1.0
        counts[one] += 1.0 - mixing
        counts[even] += mixing
        each[place] = costs[one] + mixing * span
        unsure_us += _MIXING_ERROR * span
    return unsure_us


def _flags(table: CostTable, keys: Sequence[str], parts: Sequence[Part], partial: bool) -> tuple[str, ...]:
    found: list[str] = []
    if partial:
        found.append("partial")
    if table.header.discrepancy.source == "prior":
        found.append("prior-discrepancy")
    if table.header.floor is None:
        found.append("no-floor")
    if table.lut.header.device.private_cache_bytes is None:
        found.append("no-cache-size")
    found.extend(flag for key in dict.fromkeys(keys) for flag in _flags_of(key))
    found.extend(f"entry:{flag}" for part in parts for flag in part.flags)
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=65536)
def _flags_of(key: str) -> tuple[str, ...]:
    spec = OpSpec.from_key(key)
    alone = len(spec.steps) == 1
    return tuple(flag for step in spec.steps for flag in _step_flags(step, alone=alone))


def _step_flags(step: Step, *, alone: bool) -> tuple[str, ...]:
    tensors = [tensor for tensor in step.inputs if isinstance(tensor, TensorSpec)]
    packed = any(tensor.role != "act" and tensor.dtype in ("i8", "u8", "i4") for tensor in tensors)
    if step.op in _WEIGHTED and step.outputs[0].dtype == "f32" and packed:
        return ("hybrid-quantised",)
    if alone and step.op in ("RELU", "RELU6", "PRELU", "LEAKY_RELU") and step.outputs[0].dtype in ("i8", "u8"):
        return ("data-dependent",)
    return ()


def _parser() -> argparse.ArgumentParser:
    import argparse

    from luts.command import add_setting_options

    parser = argparse.ArgumentParser(
        prog="python -m luts.predict",
        description="Predict the latency of networks from a table, with a 95 % prediction interval.",
        epilog="exit status: 0 predicted, 2 not (an operation is missing, a file is unreadable).",
    )
    parser.add_argument("networks", nargs="+", metavar="NETWORK.tflite", help="networks to predict")
    parser.add_argument("--lut", required=True, metavar="TABLE", help="the table, as luts.build wrote it")
    parser.add_argument("--partial", action="store_true", help="count missing operations as nothing: a lower bound")
    parser.add_argument("--parts", action="store_true", help="show what every operation costs")
    parser.add_argument("--json", action="store_true", help="print JSON: an object, or a list for several networks")
    add_setting_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, guarded

    arguments = _parser().parse_args(argv)

    def work() -> int:
        from luts.storage import load

        table = load(arguments.lut).table(
            delegate=arguments.delegate, threads=arguments.threads, core_cluster=arguments.core_cluster
        )
        predictions = [predict(path, table, partial=arguments.partial) for path in arguments.networks]
        if arguments.json:
            import json

            found = [prediction.as_json(parts=arguments.parts) for prediction in predictions]
            print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
        else:
            print("\n".join(line for prediction in predictions for line in _told(prediction, arguments.parts)))
        _talk(predictions, arguments.networks, arguments.lut)
        return DONE

    return guarded(work)


def _told(prediction: Prediction, parts: bool) -> list[str]:
    from luts.command import table_text

    lines = []
    if parts:
        total = prediction.latency_us or 1.0
        rows = [(f"{part.latency_us:.2f}", f"{100 * part.latency_us / total:.1f}", part.key) for part in prediction.parts]
        rows.append((f"{prediction.overhead_us:.2f}", f"{100 * prediction.overhead_us / total:.1f}", "(floor)"))
        lines.append(table_text(("us", "%", "operation"), rows, right=2))
    if prediction.lower_bound:
        lines.append(
            f"{prediction.network}: at least {prediction.latency_us:.1f} us, a lower bound: "
            f"{100 * prediction.coverage_frac:.1f} % of its operations are in the table"
        )
        for miss in prediction.misses:
            lines.append(f"  missing {miss.count} x {miss.key}")
            if miss.reason:
                lines.append(f"    was tried: {miss.reason}")
            lines.extend(f"    near: {key}" for key in miss.nearest)
    else:
        lines.append(
            f"{prediction.network}: {prediction.latency_us:.1f} us "
            f"({prediction.latency_us_low:.1f} to {prediction.latency_us_high:.1f}, 95 % prediction interval)"
        )
    return lines


def _talk(predictions: Sequence[Prediction], networks: Sequence[str], lut: str) -> None:
    flags = dict.fromkeys(flag for prediction in predictions for flag in prediction.flags)
    for flag in flags:
        meaning = FLAG_MEANINGS.get(flag, "flagged when it was measured")
        print(f"note: {flag}: {meaning}", file=sys.stderr)
    import shlex

    names = shlex.join(networks)
    if any(prediction.lower_bound for prediction in predictions):
        print(f"next: python -m harness.profile --model {names}", file=sys.stderr)
    else:
        print(f"next: python -m luts.validate --lut {shlex.quote(lut)} --model {names}", file=sys.stderr)


if __name__ == "__main__":
    # A process that reads one table and ends frees nothing in between: looking for cycles is a quarter of its time.
    gc.disable()
    sys.exit(main())
