"""The operation table of a run: every cost with its interval, computed from the raw files alone, the same each time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import estimate
from harness.errors import CorruptRunError
from harness.estimate import Floats
from harness.jobs import Job
from harness.rundir import RunReader
from op_models import elp_nas

FORMAT = "operation-table"
VERSION = 1
METHOD = "slope over N of the 25 % quantile over rounds of burst minima"
_WIDE_FRAC = 0.10
_NONLINEAR_FRAC = 0.05
_UNSTEADY_FRAC = 0.10
Table = dict[str, Any]


def compute(run: RunReader) -> Table:
    """The table of a run, live or finished; jobs without a round are left out, failed ones are listed.

    Raises :class:`CorruptRunError` where a raw file is not what was recorded.
    """
    try:
        jobs = [Job.model_validate(dict(job)) for job in run.jobs]
    except ValueError as error:
        raise CorruptRunError(path=run.path / "jobs.json", reason=f"its jobs are not jobs ({error})") from error
    manifest = run.manifest
    clock: estimate.ClockName = "thread-cpu" if manifest.settings.get("clock") == "thread-cpu" else "wall"
    entries: list[Table] = []
    networks: list[Table] = []
    published: list[Table] = []
    blocks: dict[str, Table] = {}
    for name in dict.fromkeys(job.block for job in jobs):
        places = [i for i, job in enumerate(jobs) if job.block == name]
        rounds = [rows for _, rows in run.rounds(name)]
        if not rounds:
            continue
        values = np.stack([estimate.burst_values(rows, clock, len(jobs))[places] for rows in rounds])
        invocations = sum(np.bincount(rows["job"][rows["invoke"] > 0], minlength=len(jobs)) for rows in rounds)
        block = _Block([jobs[i] for i in places], values, np.asarray(invocations)[places])
        entries.extend(block.entries())
        networks.extend(block.networks())
        published.extend(block.published(rounds, places))
        blocks[name] = block.standing()
    state = run.state()
    return {
        "format": FORMAT,
        "version": VERSION,
        "run_id": manifest.run_id,
        "plan_sha256": manifest.plan_sha256,
        "device": manifest.device.model_dump(mode="json"),
        "conditions": _conditions(run, jobs, clock),
        "floor_us": _median(block["floor_us"] for block in blocks.values()),
        "reference_us": _median(block["reference"]["level_us"] for block in blocks.values()),
        "blocks": blocks,
        "elp_nas": published,
        "entries": sorted(entries, key=lambda entry: (entry["key"], entry["context"])),
        "networks": networks,
        "failed": _failed(jobs, state.failed, manifest.settings.get("unliftable")),
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _conditions(run: RunReader, jobs: list[Job], clock: str) -> Table:
    runtime = run.manifest.runtime
    settings = run.manifest.settings
    core = settings.get("core")
    return {
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "binary_sha256": runtime.library_sha256,
        "delegate": jobs[0].delegate if jobs else None,
        "threads": jobs[0].threads if jobs else None,
        "core_cluster": _cluster(run, core),
        "clock": clock,
        "statistic": METHOD,
        "private_cache_bytes": settings.get("private_cache_bytes"),
        "shared_cache_bytes": settings.get("shared_cache_bytes"),
        "power": None,
    }


def _cluster(run: RunReader, core: Any) -> str | None:
    for cluster in run.manifest.device.clusters:
        if core in cluster.cores:
            return cluster.name
    return None


def _failed(jobs: list[Job], failed: Any, unliftable: Any) -> list[Table]:
    told = {job.job_id: job for job in jobs}
    listed: list[Table] = [
        {"key": told[name].key or told[name].name, "context": told[name].context, "reason": event.message}
        for name, event in failed.items()
        if name in told
    ]
    listed += [{"key": key, "context": None, "reason": reason} for key, reason in sorted((unliftable or {}).items())]
    return listed


def operation_fit(jobs: Sequence[Job], columns: Sequence[int], levels: Floats, replicates: Floats, empty: int) -> estimate.Slope:
    """The slope over N of the op models of one operation in one context.

    ``columns`` are their places in ``levels`` [models] and ``replicates`` [replicates, models]. Outside the *hot* context
    the line starts at the empty model, in column ``empty``: see :mod:`op_models.arrange`.
    """
    copies = [job.copies for job in jobs]
    chosen = list(columns)
    if jobs[0].context != "hot":
        copies, chosen = [0, *copies], [empty, *chosen]
    return estimate.slope(copies, levels[chosen].tolist(), replicates[:, chosen])


class _Block:
    """All values of one block, with the resampled levels that its entries share."""

    def __init__(self, jobs: list[Job], values: Floats, invocations: NDArray[np.int64]) -> None:
        self.jobs, self.values, self.invocations = jobs, values, invocations
        self.levels, self.replicates = estimate.levels_with_replicates(values)
        self.counts = np.sum(~np.isnan(values), axis=0)

    def _of_role(self, *roles: str) -> list[int]:
        return [i for i, job in enumerate(self.jobs) if job.role in roles and self.counts[i] > 0]

    def standing(self) -> Table:
        reference = self._of_role("reference")
        empty = self._of_role("empty")
        return {
            "rounds": int(self.values.shape[0]),
            "floor_us": float(self.levels[empty[0]]) if empty else None,
            "reference": estimate.drift(self.values[:, reference[0]] if reference else np.empty(0)),
        }

    def entries(self) -> list[Table]:
        subjects: dict[str, list[int]] = {}
        for index in self._of_role("operation"):
            subjects.setdefault(self.jobs[index].subject, []).append(index)
        empty = self._of_role("empty")
        found = []
        for members in subjects.values():
            hot = self.jobs[members[0]].context == "hot"
            # An op model that failed leaves its partner without a slope.
            if (len(members) >= 2) if hot else bool(empty):
                found.append(self._entry(sorted(members, key=lambda i: self.jobs[i].copies), empty))
        return found

    def _entry(self, members: list[int], empty: list[int]) -> Table:
        first = empty[0] if empty else members[0]
        fit = operation_fit([self.jobs[i] for i in members], members, self.levels, self.replicates, first)
        copies = [self.jobs[i].copies for i in members]
        if self.jobs[members[0]].context != "hot":
            copies = [0, *copies]
        low, high = estimate.interval(fit.cost_us, fit.replicates_us)
        flags = []
        if not fit.cost_us > 0:
            flags.append("not-positive")
        elif (high - low) / 2 > _WIDE_FRAC * fit.cost_us:
            flags.append("wide")
        if fit.nonlinearity_frac is not None and fit.nonlinearity_frac > _NONLINEAR_FRAC:
            flags.append("not-linear")
        reference = self.standing()["reference"]
        spread = reference["spread_frac"]
        if spread is not None and spread > _UNSTEADY_FRAC:
            flags.append("host-unsteady")
        job = self.jobs[members[0]]
        return {
            "key": job.key,
            "context": job.context,
            "n_values": copies,
            "latency_us": fit.cost_us,
            "latency_us_low": low,
            "latency_us_high": high,
            "latency_us_replicates": [round(float(value), 5) for value in fit.replicates_us],
            "fixed_us": fit.fixed_us,
            "reference_us": reference["level_us"],
            "rounds": int(self.counts[members].min()),
            "invocations": int(self.invocations[members].sum()),
            "flags": flags,
            "method": METHOD,
        }

    def networks(self) -> list[Table]:
        found = []
        for index in self._of_role("network"):
            low, high = estimate.interval(float(self.levels[index]), self.replicates[:, index])
            job = self.jobs[index]
            found.append(
                {
                    "name": job.name,
                    "model_sha256": job.model_sha256,
                    "latency_us": float(self.levels[index]),
                    "latency_us_low": low,
                    "latency_us_high": high,
                    "rounds": int(self.counts[index]),
                }
            )
        return found

    def published(self, rounds: list[Any], places: list[int]) -> list[Table]:
        """The statistic of ELP-NAS beside ours: the mean of 100 wall-clock runs of a chain (or all, if fewer), over N."""
        found = []
        for index in self._of_role("elp-nas"):
            job = self.jobs[index]
            mine = (rows[(rows["job"] == places[index]) & (rows["invoke"] > 0)]["wall_ns"] for rows in rounds)
            wall_ns = np.concatenate(list(mine))[: elp_nas.RUNS]
            found.append(
                {
                    "name": job.name,
                    "n": job.copies,
                    "runs": int(wall_ns.size),
                    "latency_us_mean_wall": float(wall_ns.mean()) / 1e3 / job.copies,
                    "latency_us_level": float(self.levels[index]) / job.copies,
                }
            )
        return found


def files(table: Table) -> dict[str, bytes]:
    """The table as the files of ``derived/``: JSON in full, CSV with one line an entry."""
    text = io.StringIO()
    columns = ["key", "context", "latency_us", "latency_us_low", "latency_us_high", "n_values", "rounds", "flags"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for entry in table["entries"]:
        row = [entry[column] for column in columns]
        writer.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in row])
    return {
        "operations.json": (json.dumps(table, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        "operations.csv": text.getvalue().encode(),
    }
