"""Checks predictions against measured networks beside the baselines: ``python -m luts.validate --lut TABLE``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import HarnessError
from luts import baselines, calibrate, measured, unseen
from luts.errors import RequestError
from luts.intervals import discrepancy_half_width
from luts.lookup import CostTable
from luts.measured import MeasuredNetwork, Measurements
from luts.metrics import Floats, Score, score
from luts.predict import predict
from luts.schema import Calibration
from op_models import counts as op_counts
from op_models import graph as graphs

if TYPE_CHECKING:
    import argparse

    from luts.baselines import Mask
    from luts.calibrate import Fit

__all__ = ["NetworkResult", "Row", "Validation", "compare", "score", "validate"]

# The scaled table, MACs and the thesis' method each have one constant, fitted on this many networks.
FIT_NETWORKS = 5
# Networks that are drawn where none are named.
COUNT = 20


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """One network, measured and predicted. Those marked ``fit`` gave constants and are not scored."""

    model: str
    group: str | None
    measured_us: float
    predicted_us: float
    predicted_us_low: float
    predicted_us_high: float
    fit: bool
    sha256: str | None = None

    @property
    def error_frac(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_us / self.measured_us - 1

    @property
    def inside(self) -> bool:
        """Whether the measurement lies in the prediction interval."""
        return self.predicted_us_low <= self.measured_us <= self.predicted_us_high


@dataclass(frozen=True, slots=True)
class Row:
    """One predictor's score; ``fitted`` is how many networks its constant was fitted on (0: nothing fitted)."""

    predictor: str
    fitted: int
    score: Score


@dataclass(frozen=True, slots=True)
class Validation:
    """The networks, and every predictor's score on those of them that nothing was fitted on."""

    networks: tuple[NetworkResult, ...]
    rows: tuple[Row, ...]
    seed: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Per network, then the summary with the baselines; a value that does not exist is null."""
        return {
            "format": "validation",
            "version": 1,
            "networks": [
                {
                    "model": item.model,
                    "group": item.group,
                    "sha256": item.sha256,
                    "measured_us": round(item.measured_us, 3),
                    "predicted_us": round(item.predicted_us, 3),
                    "predicted_us_low": round(item.predicted_us_low, 3),
                    "predicted_us_high": round(item.predicted_us_high, 3),
                    "error_frac": round(item.error_frac, 6),
                    "fit": item.fit,
                }
                for item in self.networks
            ],
            "summary": _score_json(self.rows[0].score),
            "predictors": [{"predictor": row.predictor, "fitted_on": row.fitted} | _score_json(row.score) for row in self.rows],
            "seed": self.seed,
            "notes": list(self.notes),
        }


def _score_json(found: Score) -> dict[str, Any]:
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: None if value is None or not math.isfinite(value) else round(value, 6) for name, value in values.items()}


def compare(
    networks: Sequence[NetworkResult],
    *,
    macs: Sequence[int] | None = None,
    paper_counts: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    paper_mean_us: Sequence[float] | None = None,
    paper_ours_us: Sequence[float] | None = None,
    retest_us: Sequence[float] | None = None,
    calibrated: bool = False,
    discrepancy_log: float | None = None,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Validation:
    """Score predictions beside the baselines, all on the same networks: those that are not marked ``fit``.

    Constants (one scale, MACs, the thesis' bias) are fitted on the networks marked ``fit``; where there is none, no
    predictor with a constant appears. ``paper_counts`` has shape (n, m), the two tables (m,). ``retest_us`` are second
    measurements of the same networks, NaN where a network has none. A ``calibrated`` table gets no second scale.
    ``discrepancy_log`` is what the predictions' intervals hold for the discrepancy (half-width, log scale): with it, the
    uncalibrated table is also scored with intervals whose discrepancy is learnt from the networks marked ``fit``.
    Raises :class:`~luts.errors.RequestError` where nothing is left to score.
    """
    truth = np.array([item.measured_us for item in networks])
    guess = np.array([item.predicted_us for item in networks])
    fit = np.array([item.fit for item in networks], dtype=bool)
    rest = ~fit
    if not rest.any():
        raise RequestError("every network was used for fitting; none is left to score")
    k = int(fit.sum())
    low = np.array([item.predicted_us_low for item in networks])
    high = np.array([item.predicted_us_high for item in networks])
    name = "table, calibrated" if calibrated else "table, nothing fitted"
    rows = [Row(name, 0, score(truth[rest], guess[rest], low[rest], high[rest]))]

    def add(predictor: str, predict: Callable[[Mask], Floats]) -> None:
        if k:
            rows.append(Row(predictor, k, score(truth[rest], predict(fit)[rest])))

    if not calibrated and k:
        for told, with_scale in (("table, nothing fitted but the interval", False), ("table, one scale", True)):
            learnt = calibrate.fit(truth[fit], guess[fit], with_scale=with_scale)
            scaled = learnt.scale * guess[rest]
            ends: tuple[Floats, Floats] | None = None
            if discrepancy_log is not None:
                half = _relearnt(guess[rest], high[rest], discrepancy_log, learnt, k if with_scale else None)
                ends = scaled * np.exp(-half), scaled * np.exp(half)
            rows.append(Row(told, k, score(truth[rest], scaled, *(ends or ()))))
    if paper_counts is not None and paper_ours_us is not None:
        ours = np.asarray(paper_ours_us)
        add("thesis, our statistic", lambda mask: baselines.thesis(paper_counts, ours, truth, mask))
    if paper_counts is not None and paper_mean_us is not None:
        mean = np.asarray(paper_mean_us)
        add("thesis, as published", lambda mask: baselines.thesis(paper_counts, mean, truth, mask))
    if macs is not None and min(macs, default=0) > 0:
        add("MACs x constant", lambda mask: baselines.proportional(np.asarray(macs, dtype=float), truth, mask))
    if retest_us is not None:
        again = np.asarray(retest_us, dtype=np.float64)
        both = rest & np.isfinite(again)
        if both.any():
            rows.append(Row("retest of the same networks", 0, baselines.retest(truth[both], again[both])))
    return Validation(tuple(networks), tuple(rows), seed, tuple(notes))


def _relearnt(predicted_us: Floats, high_us: Floats, discrepancy_log: float, learnt: Fit, scale_networks: int | None) -> Floats:
    """Half-widths on the log scale with another discrepancy: what an interval holds besides it is kept."""
    sampling = np.maximum(np.log(high_us / predicted_us) ** 2 - discrepancy_log**2, 0.0)
    calibration = None if scale_networks is None else Calibration(learnt.scale, 1.0, 1.0, scale_networks)
    return np.sqrt(sampling + discrepancy_half_width(learnt.discrepancy, calibration) ** 2)


def validate(table: CostTable, measurements: Measurements, *, fit_networks: int = FIT_NETWORKS, seed: int = 0) -> Validation:
    """Predict every measured network from the table and score the predictions beside the baselines.

    Networks that the table was calibrated on are never scored. Which networks constants are fitted on is what the
    measurements mark, else ``fit_networks`` of them drawn by ``seed`` (fewer than half of them, else none). Raises
    :class:`~luts.errors.UnknownOpError` where the table lacks an operation.
    """
    networks = measurements.networks
    read = [graphs.read(network.model) for network in networks]
    header = table.header
    learnt_on = set(header.discrepancy.model_sha256s)
    if header.calibration is not None:
        learnt_on |= set(header.calibration.model_sha256s)
    seen = [graph.sha256 in learnt_on for graph in read]
    fit = _fit_choice(networks, seen, fit_networks, seed)
    predictions = [predict(graph, table) for graph in read]
    notes = []
    if any(seen):
        notes.append(f"{sum(seen)} networks were used to calibrate the table and are not scored")
    results = [
        NetworkResult(
            model=network.model,
            group=network.group,
            measured_us=network.measured_us,
            predicted_us=prediction.latency_us,
            predicted_us_low=prediction.latency_us_low,
            predicted_us_high=prediction.latency_us_high,
            fit=bool(chosen),
            sha256=graph.sha256,
        )
        for network, prediction, graph, chosen in zip(networks, predictions, read, fit, strict=True)
    ]
    counts, mean_us, ours_us = _paper(measurements)
    return compare(
        results,
        macs=_macs(networks, read),
        paper_counts=counts,
        paper_mean_us=mean_us,
        paper_ours_us=ours_us,
        retest_us=[math.nan if network.retest_us is None else network.retest_us for network in networks],
        calibrated=header.calibration is not None,
        discrepancy_log=table.discrepancy_log,
        seed=seed,
        notes=notes,
    )


def _fit_choice(networks: Sequence[MeasuredNetwork], seen: Sequence[bool], k: int, seed: int) -> list[bool]:
    if any(seen) or any(network.fit for network in networks):
        return [was_seen or bool(network.fit) for network, was_seen in zip(networks, seen, strict=True)]
    free = [position for position, network in enumerate(networks) if network.fit is None]
    chosen = [False] * len(networks)
    if 0 < k < len(free) / 2:
        for position in np.flatnonzero(baselines.fit_mask(len(free), k, seed=seed)).tolist():
            chosen[free[position]] = True
    return chosen


def _macs(networks: Sequence[MeasuredNetwork], read: Sequence[Any]) -> list[int]:
    return [
        sum(op_counts.macs(group.spec) for group in graphs.groups(graph)) if network.macs is None else network.macs
        for network, graph in zip(networks, read, strict=True)
    ]


def _paper(measurements: Measurements) -> tuple[Any, list[float] | None, list[float] | None]:
    """Counts (n, m) of the thesis' operations, and its table in both forms; None where the file tells none."""
    told = dict(measurements.paper_mean_us) or dict(measurements.paper_ours_us)
    names = list(told)
    if not names or not all(network.paper_counts for network in measurements.networks):
        return None, None, None
    counts = np.zeros((len(measurements.networks), len(names)))
    for row, network in enumerate(measurements.networks):
        for name, count in network.paper_counts:
            if name not in told:
                raise RequestError(f"{network.model} counts {name}, which the thesis' table in the same file lacks")
            counts[row, names.index(name)] = count

    def column(pairs: tuple[tuple[str, float], ...]) -> list[float] | None:
        values = dict(pairs)
        return [values[name] for name in names] if set(names) <= set(values) else None

    return counts, column(measurements.paper_mean_us), column(measurements.paper_ours_us)


_HEADS = ("MAPE %", "bias %", "max %", "+-5 %", "+-10 %", "rho", "tau", "inside %", "+-PI %", "networks", "predictor")


def summary_text(validation: Validation) -> str:
    """The predictors' scores as a table."""
    from luts.command import table_text

    def percent(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{100 * value:.{digits}f}"

    rows = []
    for row in validation.rows:
        found = row.score
        fitted = f" (fitted on {row.fitted})" if row.fitted else ""
        rows.append(
            (
                percent(found.mape_frac, 2),
                f"{100 * found.bias_frac:+.2f}",
                percent(found.max_ape_frac),
                percent(found.hits_5_frac),
                percent(found.hits_10_frac),
                _correlation(found.spearman),
                _correlation(found.kendall),
                percent(found.interval_coverage_frac),
                percent(found.median_half_width_frac),
                str(found.networks),
                row.predictor + fitted,
            )
        )
    return table_text(_HEADS, rows, right=len(_HEADS) - 1)


def _correlation(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def networks_text(validation: Validation) -> str:
    """Measured and predicted, a line a network."""
    from luts.command import table_text

    rows = [
        (
            f"{item.measured_us:.1f}",
            f"{item.predicted_us:.1f}",
            f"{item.predicted_us_low:.1f}",
            f"{item.predicted_us_high:.1f}",
            f"{100 * item.error_frac:+.1f}",
            "fit" if item.fit else "" if item.inside else "outside",
            Path(item.model).name,
        )
        for item in validation.networks
    ]
    return table_text(("measured us", "predicted us", "low", "high", "error %", "", "network"), rows, right=5)


def _parser() -> argparse.ArgumentParser:
    import argparse

    from luts.command import add_setting_options

    parser = argparse.ArgumentParser(
        prog="python -m luts.validate",
        description="Measure networks that the table has not seen in other processes (drawn from a search space unless "
        "--model names them; or read --measured), predict them, and score the predictions beside the baselines.",
        epilog="exit status: 0 scored, 2 not. Networks that the table was calibrated on are not scored.",
    )
    parser.add_argument("--lut", required=True, metavar="TABLE", help="the table to check")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", nargs="+", default=[], metavar="NETWORK.tflite", help="networks to measure now")
    source.add_argument("--measured", metavar="FILE", help="networks measured before: JSON, CSV or a run")
    source.add_argument("--space", default=unseen.SPACE, help=f"search space to draw networks from ({unseen.SPACE})")
    parser.add_argument("--count", type=int, default=COUNT, help=f"networks to draw ({COUNT})")
    parser.add_argument("--fit", type=int, default=FIT_NETWORKS, metavar="K", help="networks to fit constants on (5)")
    parser.add_argument("--seed", type=int, default=0, help="draws the networks, and those to fit on (0)")
    parser.add_argument("--rounds", type=int, help="rounds of measuring each network")
    parser.add_argument("--out", metavar="DIRECTORY", help="where to keep what is measured (beside the table)")
    parser.add_argument("--json", action="store_true", help="print JSON: per network, then the summary")
    add_setting_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, guarded

    arguments = _parser().parse_args(argv)

    def checked() -> int:
        from luts.storage import load

        if arguments.seed < 0 or arguments.fit < 0:
            raise RequestError("--seed and --fit must not be negative")
        table = load(arguments.lut).table(
            delegate=arguments.delegate, threads=arguments.threads, core_cluster=arguments.core_cluster
        )
        if arguments.measured:
            kept, measurements = arguments.measured, measured.load(arguments.measured)
        else:
            kept, measurements = _measure(table, arguments)
        found = validate(table, measurements, fit_networks=arguments.fit, seed=arguments.seed)
        if not arguments.measured:
            _keep(measurements, found, kept)
        if arguments.json:
            print(json.dumps(found.as_json(), indent=1, allow_nan=False))
        else:
            print(networks_text(found) + "\n\n" + summary_text(found))
        print(f"seed {found.seed}; measurements in {kept}", file=sys.stderr)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        if table.header.calibration is None:
            print(
                f"next: python -m luts.calibrate --lut {arguments.lut} --measured {kept} -o CALIBRATED.json",
                file=sys.stderr,
            )
        else:
            print(f"next: python -m luts.predict NETWORK.tflite --lut {arguments.lut}", file=sys.stderr)
        return DONE

    return guarded(checked, also=(HarnessError,))


def _measure(table: CostTable, arguments: argparse.Namespace) -> tuple[Path, Measurements]:
    """Measure the networks that were named, or drawn ones; also where the measurements are kept."""
    from luts import measure

    if arguments.rounds is not None and not 3 <= arguments.rounds <= 1000:
        raise RequestError("--rounds must be between 3 and 1000")
    directory = Path(arguments.out) if arguments.out else _free_directory(Path(arguments.lut))
    rounds = measure.ROUNDS if arguments.rounds is None else arguments.rounds
    if arguments.model:
        for path in arguments.model:
            predict(path, table)  # what cannot be predicted need not be measured
        measurements = measure.measure_networks(arguments.model, table, directory, rounds=rounds, seed=arguments.seed)
    else:
        drawn = unseen.draw(table, directory / "networks", count=arguments.count, seed=arguments.seed, space=arguments.space)
        paths = [item.path for item in drawn]
        measurements = measure.measure_networks(paths, table, directory, rounds=rounds, seed=arguments.seed)
        measurements = unseen.with_paper(measurements, drawn, table)
    return directory / "networks.json", measurements


def _keep(measurements: Measurements, validation: Validation, path: Path | str) -> None:
    """Write the measurements with the choice of networks to fit on, so that calibrating leaves the others alone."""
    networks = tuple(
        replace(network, fit=result.fit) if any(item.fit for item in validation.networks) else network
        for network, result in zip(measurements.networks, validation.networks, strict=True)
    )
    measured.save(replace(measurements, networks=networks), path)


def _free_directory(lut: Path) -> Path:
    """A directory beside the table that does not exist yet."""
    stem = lut.name.removesuffix(".json").removesuffix(".lut")
    number = 1
    while (found := lut.parent / f"{stem}.validation-{number}").exists():
        number += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
