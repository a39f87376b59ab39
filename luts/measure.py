"""Measures whole networks for calibrating and validating: each twice, in two processes, interleaved in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luts.errors import RequestError
from luts.measured import MeasuredNetwork, Measurements

if TYPE_CHECKING:
    from harness.plan import Plan
    from luts.lookup import CostTable

ROUNDS = 16
LEAST_ROUNDS = 3
PASSES = 2


def network_plan(paths: Sequence[Path], *, delegate: str, threads: int, name: str, rounds: int, seed: int) -> tuple[Plan, str]:
    """A plan that measures whole networks and nothing else, and its text."""
    from harness import plan as plans

    template = plans.Plan.model_validate(
        {
            "plan_format": 1,
            "name": name,
            "networks": {"models": [str(path) for path in paths]},
            "runtime": {"delegate": delegate, "threads": threads},
            # Every network gets all rounds: their number decides how good the truth is.
            "measure": {"rounds_min": rounds, "rounds_max": rounds, "burst_us": 10_000.0, "seed": seed},
        }
    )
    return plans.for_models((), networks=tuple(paths), name=name, template=template)


def measure_networks(
    paths: Sequence[Path | str], table: CostTable, directory: Path, *, rounds: int = ROUNDS, seed: int = 0
) -> Measurements:
    """Measures networks under the conditions of ``table``, twice, into run directories ``pass-1`` and ``pass-2``.

    The second figure is the retest of the first, from another process and a later time. Raises
    :class:`~luts.errors.RequestError` where a network cannot be run, and what :func:`harness.runner.run` raises.
    """
    from harness import progress, rundir, runner

    if rounds < LEAST_ROUNDS:
        raise RequestError(f"{rounds} rounds give no interval; at least {LEAST_ROUNDS} are needed")
    files = list(dict.fromkeys(Path(path).resolve() for path in paths))
    setting = table.setting
    passes: list[dict[str, MeasuredNetwork]] = []
    for number in range(1, PASSES + 1):
        name = f"pass-{number}"
        plan, text = network_plan(
            files, delegate=setting.delegate, threads=setting.threads, name=name, rounds=rounds, seed=seed + number
        )
        with progress.Progress() as watcher:
            outcome = runner.run(plan, text, directory / name, runner.Settings(watcher=watcher))
        if outcome.failed:
            raise RequestError(f"{len(outcome.failed)} networks cannot be measured: {next(iter(outcome.failed.values()))}")
        passes.append(_measured(rundir.read_run(directory / name).derived("operations.json")))
    first, again = passes
    networks = tuple(
        MeasuredNetwork(
            model=str(path),
            measured_us=first[str(path)].measured_us,
            measured_us_low=first[str(path)].measured_us_low,
            measured_us_high=first[str(path)].measured_us_high,
            retest_us=again[str(path)].measured_us,
            sha256=first[str(path)].sha256,
        )
        for path in files
    )
    return Measurements(source=str(directory), networks=networks)


def _measured(derived: bytes) -> dict[str, MeasuredNetwork]:
    import json

    return {
        network["name"]: MeasuredNetwork(
            model=network["name"],
            measured_us=network["latency_us"],
            measured_us_low=network["latency_us_low"],
            measured_us_high=network["latency_us_high"],
            sha256=network["model_sha256"],
        )
        for network in json.loads(derived)["networks"]
    }
