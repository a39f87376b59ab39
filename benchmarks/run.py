"""Measures the figures of README: ``python -m benchmarks.run`` writes ``benchmarks/figures.json``.

One table serves all rows of a device. Operations are lifted from one instance of every network; the networks that are
predicted are drawn, or are instances with other weights, after the table is closed. The model discrepancy is learnt on
further networks that are not scored. Predictions, baselines and the retest of the same networks come from one session.

Stages keep what they measured under ``--work``, so a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import speed
from benchmarks.table import ROOT, Accuracy, Figures, Speed
from harness import plan as plans
from harness import runner
from harness.progress import Progress
from luts import build as lut_build
from luts import calibrate, measure, measured, unseen, validate
from luts.lookup import CostTable
from luts.measured import Measurements
from luts.metrics import Score
from luts.runs import read_run
from luts.schema import Lut
from luts.storage import load, save
from op_models import graph as graphs
from op_models.artifact import ArtifactCache
from op_models.layers import Precision

# The size of the benchmark; "quick" is for trying the benchmark itself.
COUNTS = {"full": (66, 60, 30), "quick": (9, 6, 6)}
LEARN = 12  # networks of each space that the discrepancy is learnt on
LEARN_SEED = 90_001


@dataclass(frozen=True, slots=True)
class Device:
    """A runtime setting that counts as a device of its own."""

    name: str
    delegate: str


XNNPACK, BUILTIN = Device("xnnpack", "xnnpack"), Device("builtin kernels", "none")


class Bench:
    """The stages, each kept on disk by name."""

    def __init__(self, work: Path, seed: int, size: str, zoo: Path | None) -> None:
        self.work, self.seed, self.zoo = work, seed, zoo
        self.enas, self.nas_bench, self.enas_int8 = COUNTS[size]
        self.accuracy: list[Accuracy] = []
        self.speed: list[Speed] = []
        self.scored: list[validate.NetworkResult] = []
        self.gaps: list[str] = []

    # --- tables -------------------------------------------------------------------------------------------------

    def run(self, name: str, text: str) -> Path:
        """A run of a plan, measured or finished from an earlier start."""
        path = self.work / "runs" / name
        with Progress() as watcher:
            # A cache of its own, so that making the op models counts.
            cache = ArtifactCache(self.work / "cache")
            settings = runner.Settings(cache=cache, watcher=watcher, plan_directory=self.work)
            if path.exists():
                runner.resume(path, settings)
            else:
                begin = time.monotonic()
                runner.run(plans.parse(text, name), text, path, settings)
                (self.work / f"{name}.seconds").write_text(f"{time.monotonic() - begin:.2f}\n")
        return path

    def table(self, device: Device, texts: dict[str, str]) -> CostTable:
        """One table from several runs under the same conditions."""
        path = self.work / f"{device.delegate}.lut.json"
        if not path.exists():
            runs = [self.run(f"{device.delegate}-{name}", text) for name, text in texts.items()]
            save(lut_build.build([read_run(run) for run in runs]), path)
        return load(path).table()

    # --- networks -----------------------------------------------------------------------------------------------

    def drawn(
        self, name: str, table: CostTable, space: str, count: int, seed: int, precision: Precision = "float32"
    ) -> Measurements:
        """Networks drawn from a space and measured twice."""

        def make(directory: Path) -> Measurements:
            found = unseen.draw(table, directory / "networks", count=count, seed=seed, space=space, precision=precision)
            measurements = measure.measure_networks([item.path for item in found], table, directory, seed=seed)
            return unseen.with_paper(measurements, found, table)

        return self._kept(name, make)

    def files(self, name: str, table: CostTable, paths: Sequence[Path]) -> Measurements:
        """Networks in files, measured twice."""
        return self._kept(name, lambda directory: measure.measure_networks(paths, table, directory, seed=self.seed))

    def _kept(self, name: str, make: Callable[[Path], Measurements]) -> Measurements:
        directory = self.work / name
        kept = directory / "networks.json"
        if not kept.exists():
            if directory.exists():  # half measured: networks of one session belong together
                directory.rename(self.work / f"{name}.stopped-{secrets.token_hex(3)}")
            print(f"measuring {name}", file=sys.stderr)
            measured.save(make(directory), kept)
        return measured.load(kept)

    # --- scores -------------------------------------------------------------------------------------------------

    def score(
        self,
        networks: str,
        table: CostTable,
        measurements: Measurements,
        *,
        goals: dict[str, Callable[[Score, dict[str, Score]], tuple[str, bool]]],
        seed: int | None = None,
        pool: bool = True,
    ) -> None:
        """Adds a row for every predictor of a set of networks.

        The table with nothing fitted and the retest are scored on all networks; predictors with a constant on all but the
        few that it was fitted on.
        """
        unfitted = validate.validate(table, measurements, fit_networks=0, seed=self.seed)
        fitted = validate.validate(table, measurements, fit_networks=validate.FIT_NETWORKS, seed=self.seed)
        rows = [row for row in unfitted.rows if row.predictor in (UNFITTED, RETEST)]
        rows[1:1] = [row for row in fitted.rows if row.predictor in (SCALED, THESIS, PUBLISHED, MACS)]
        told = {row.predictor: row.score for row in rows}
        if pool:
            self.scored += unfitted.networks
        for row in rows:
            goal, reached = goals[row.predictor](row.score, told) if row.predictor in goals else (None, None)
            method = row.predictor + (f" (from {row.fitted})" if row.fitted else "")
            self.accuracy.append(_accuracy(networks, method, row.score, seed, goal, reached))

    def intervals(self) -> None:
        """The interval's coverage over all networks that nothing was fitted on."""
        if not self.scored:
            return
        items = self.scored
        score = validate.score(
            [item.measured_us for item in items],
            [item.predicted_us for item in items],
            [item.predicted_us_low for item in items],
            [item.predicted_us_high for item in items],
        )
        covered, half = score.interval_coverage_frac or 0.0, score.median_half_width_frac or 1.0
        reached = 0.90 <= covered <= 0.99 and half <= 0.06
        goal = "covers 90-99 %, half-width <= 6 %"
        self.accuracy.append(_accuracy("all unseen networks of xnnpack", "95 % interval", score, None, goal, reached))


def _accuracy(networks: str, method: str, score: Score, seed: int | None, goal: str | None, reached: bool | None) -> Accuracy:
    covered, half = score.interval_coverage_frac, score.median_half_width_frac
    return Accuracy(
        networks=networks,
        method=method,
        count=score.networks,
        seed=seed,
        mape_pct=round(100 * score.mape_frac, 3),
        bias_pct=round(100 * score.bias_frac, 3),
        worst_pct=round(100 * score.max_ape_frac, 2),
        within_5_pct=round(100 * score.hits_5_frac, 1),
        within_10_pct=round(100 * score.hits_10_frac, 1),
        kendall=None if score.kendall != score.kendall else round(score.kendall, 4),
        covered_pct=None if covered is None else round(100 * covered, 1),
        half_width_pct=None if half is None else round(100 * half, 2),
        goal=goal,
        reached=reached,
    )


# --- goals ------------------------------------------------------------------------------------------------------------

UNFITTED, SCALED, RETEST = "table, nothing fitted", "table, one scale", "retest of the same networks"
THESIS, PUBLISHED, MACS = "thesis, our statistic", "thesis, as published", "MACs x constant"


def _missed(score: Score, share: float) -> int:
    return round((1 - share) * score.networks)


def enas_unfitted(score: Score, _: dict[str, Score]) -> tuple[str, bool]:
    """All but one within 10 %, MAPE at most 3 %."""
    return "all but one within 10 %, MAPE <= 3 %", _missed(score, score.hits_10_frac) <= 1 and score.mape_frac <= 0.03


def enas_scaled(score: Score, told: dict[str, Score]) -> tuple[str, bool]:
    """MAPE near the retest floor, all but two within 5 %, ranks right, a third of the published method's error."""
    floor = max(0.015, 1.3 * told[RETEST].mape_frac)
    thesis = told[THESIS].mape_frac / 3 if THESIS in told else float("inf")
    reached = (
        score.mape_frac <= floor
        and score.mape_frac <= thesis
        and _missed(score, score.hits_5_frac) <= 2
        and score.kendall >= 0.98
    )
    return f"MAPE <= {100 * min(floor, thesis):.2f} %, all but two within 5 %, Kendall >= 0.98", reached


def nas_bench(score: Score, told: dict[str, Score]) -> tuple[str, bool]:
    """MAPE at most 1 % or near the floor, all within 5 %, Kendall at least 0.99."""
    floor = max(0.01, 1.3 * told[RETEST].mape_frac)
    reached = score.mape_frac <= floor and score.hits_5_frac == 1 and score.kendall >= 0.99
    return f"MAPE <= {100 * floor:.2f} %, all within 5 %, Kendall >= 0.99", reached


def enas_int8(score: Score, _: dict[str, Score]) -> tuple[str, bool]:
    """97 % within 10 %, MAPE at most 4 %."""
    return "97 % within 10 %, MAPE <= 4 %", score.hits_10_frac >= 0.97 and score.mape_frac <= 0.04


def zoo_float(score: Score, _: dict[str, Score]) -> tuple[str, bool]:
    """MAPE at most 3.5 %, 95 % within 10 %, none over 15 %."""
    reached = score.mape_frac <= 0.035 and score.hits_10_frac >= 0.95 and score.max_ape_frac <= 0.15
    return "MAPE <= 3.5 %, 95 % within 10 %, none over 15 %", reached


def zoo_int8(score: Score, _: dict[str, Score]) -> tuple[str, bool]:
    """MAPE at most 4 %, 90 % within 10 %."""
    return "MAPE <= 4 %, 90 % within 10 %", score.mape_frac <= 0.04 and score.hits_10_frac >= 0.90


def builtin_scaled(score: Score, told: dict[str, Score]) -> tuple[str, bool]:
    """MAPE at most 1 % or near the floor."""
    floor = max(0.01, 1.3 * told[RETEST].mape_frac)
    return f"MAPE <= {100 * floor:.2f} %", score.mape_frac <= floor


# --- plans ------------------------------------------------------------------------------------------------------------


def space_plan(name: str, space: str, precision: str, delegate: str) -> str:
    """A plan of one space."""
    return "\n".join(
        (
            "plan_format = 1",
            f'name = "{name}"',
            "[operations]",
            f'spaces = ["{space}"]',
            f'precision = ["{precision}"]',
            "[runtime]",
            f'delegate = "{delegate}"',
            "[measure]",
            "rounds_min = 10",
            "rounds_max = 16",
            "burst_us = 2500.0",
            "",
        )
    )


def elp_nas_plan(delegate: str) -> str:
    """A plan of the twelve operations of ELP-NAS, for the baseline."""
    return "\n".join(
        ("plan_format = 1", 'name = "elp-nas"', "[operations]", "elp_nas = true", "[runtime]", f'delegate = "{delegate}"', "")
    )


def files_plan(name: str, paths: Iterable[Path]) -> str:
    """A plan of the operations of files."""
    listed = ", ".join(json.dumps(str(path)) for path in paths)
    lines = ["plan_format = 1", f'name = "{name}"', "[operations]", f"models = [{listed}]", "[measure]"]
    return "\n".join([*lines, "rounds_min = 9", "rounds_max = 12", "block_models = 900", ""])


# --- the benchmark ----------------------------------------------------------------------------------------------------


def zoo_paths(zoo: Path | None, part: str, *precisions: str) -> list[Path]:
    """Files of one instance of the zoo, largest first left to the plan's order (by name)."""
    if zoo is None:
        return []
    return sorted(path for path in (zoo / part).glob("*.tflite") if path.stem.rsplit("-", 1)[1] in precisions)


def xnnpack_rows(bench: Bench) -> None:
    """All rows of the default device, from one table."""
    texts = {
        "enas": space_plan("enas", "enas-micro", "float32", "xnnpack"),
        "elp-nas": elp_nas_plan("xnnpack"),
        "nas-bench-201": space_plan("nas-bench-201", "nas-bench-201", "float32", "xnnpack"),
        "enas-int8": space_plan("enas-int8", "enas-micro", "int8", "xnnpack"),
    }
    for precision in ("float32", "float16", "int8"):
        if paths := zoo_paths(bench.zoo, "lift", precision):
            texts[f"zoo-{precision}"] = files_plan(f"zoo-{precision}", paths)
    table = bench.table(XNNPACK, texts)
    bench.speed += speed.table_rows(bench.work / "runs" / "xnnpack-enas", bench.work / "xnnpack-enas.seconds")

    learning = [
        bench.drawn("learn-enas", table, "enas-micro", LEARN, LEARN_SEED),
        bench.drawn("learn-nas-bench-201", table, "nas-bench-201", LEARN, LEARN_SEED),
        bench.drawn("learn-enas-int8", table, "enas-micro", LEARN // 2, LEARN_SEED, "int8"),
    ]
    # Of the zoo, the instances that operations were lifted from: they are not scored.
    if lifted := zoo_paths(bench.zoo, "lift", "float32", "int8")[::3]:
        learning.append(bench.files("learn-zoo", table, lifted))
    table = learnt(table, learning, bench.work / "learning.json")

    seed = bench.seed
    enas = bench.drawn("enas", table, "enas-micro", bench.enas, seed)
    name = "ENAS micro float32, 3 depths"
    bench.score(name, table, enas, seed=seed, goals={UNFITTED: enas_unfitted, SCALED: enas_scaled})
    nas = bench.drawn("nas-bench-201", table, "nas-bench-201", bench.nas_bench, seed)
    bench.score("NAS-Bench-201 float32", table, nas, seed=seed, goals={UNFITTED: nas_bench})
    int8 = bench.drawn("enas-int8", table, "enas-micro", bench.enas_int8, seed, "int8")
    bench.score("ENAS micro int8, 3 depths", table, int8, seed=seed, goals={UNFITTED: enas_int8})
    for precisions, goal in ((("float32", "float16"), zoo_float), (("int8",), zoo_int8)):
        paths = [path for path in zoo_paths(bench.zoo, "unseen", *precisions) if covered(table, path)]
        if paths:
            label = "/".join(precisions)
            found = bench.files(f"zoo-{precisions[-1]}", table, paths)
            bench.score(f"zoo {label}", table, found, goals={UNFITTED: goal})
    bench.intervals()
    # A table of one space, as the default plan makes it; the benchmark's own holds some ten thousand entries.
    single = bench.work / "enas.lut.json"
    save(lut_build.build([read_run(bench.work / "runs" / "xnnpack-enas")]), single)
    bench.speed += speed.prediction_rows(single, load(single).table())


def covered(table: CostTable, path: Path) -> bool:
    """Whether a table holds every operation of a file; says so where it does not."""
    missing = [group.spec.key for group in graphs.read(path).groups if group.spec.key not in table]
    if missing:
        print(f"{path.name} is left out: no measurement of {missing[0]}", file=sys.stderr)
    return not missing


def learnt(table: CostTable, learning: Sequence[Measurements], path: Path) -> CostTable:
    """The table with the discrepancy that the given networks show; no scale is fitted."""
    networks = tuple(replace(network, fit=None) for found in learning for network in found.networks)
    measured.save(Measurements("learning", networks), path)
    lut: Lut = table.lut
    with_discrepancy, _ = calibrate.calibrate(lut, path, with_scale=False)
    return with_discrepancy.table()


def builtin_rows(bench: Bench) -> None:
    """A second device: the same computer without XNNPACK."""
    texts = {
        "enas": space_plan("enas-builtin", "enas-micro", "float32", "none"),
        "elp-nas": elp_nas_plan("none"),
    }
    table = bench.table(BUILTIN, texts)
    found = bench.drawn("builtin-enas", table, "enas-micro", max(12, bench.enas // 3), bench.seed)
    bench.score(
        "ENAS micro float32, builtin kernels",
        table,
        found,
        seed=bench.seed,
        pool=False,
        goals={SCALED: builtin_scaled},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, default=Path("runs") / "bench", help="where stages are kept (runs/bench)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "figures.json", help="the file to write")
    parser.add_argument("--zoo", type=Path, help="files prepared by benchmarks.zoo_files (default: WORK/zoo)")
    parser.add_argument("--seed", type=int, help="draws the networks (default: a fresh one)")
    parser.add_argument("--size", choices=sorted(COUNTS), default="full")
    chosen = parser.parse_args(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    zoo = chosen.zoo or chosen.work / "zoo"
    bench = Bench(chosen.work, _seed(chosen.work, chosen.seed), chosen.size, zoo if (zoo / "lift").is_dir() else None)
    print(f"seed {bench.seed}", file=sys.stderr)
    if bench.zoo is None:
        print("no zoo: run python -m benchmarks.zoo_files first to have its rows", file=sys.stderr)
    xnnpack_rows(bench)
    builtin_rows(bench)
    bench.speed += speed.bulk_rows()
    figures = Figures(
        format="figures",
        version=1,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        device=speed.device_text(),
        commit=_commit(),
        accuracy=tuple(bench.accuracy),
        speed=tuple(bench.speed),
    )
    chosen.out.write_text(figures.model_dump_json(indent=1) + "\n")
    print(chosen.out)
    print("next: python -m benchmarks.table", file=sys.stderr)
    return 0


def _seed(work: Path, asked: int | None) -> int:
    """The seed of this benchmark: asked for, kept from an earlier start, or fresh."""
    kept = work / "seed"
    if asked is None and kept.exists():
        return int(kept.read_text())
    seed = secrets.randbelow(1_000_000) if asked is None else asked
    kept.write_text(f"{seed}\n")
    return seed


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
