"""Makes a table from runs: ``python -m luts.build RUN... -o TABLE``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from luts.errors import RequestError, UnlikeConditionsError
from luts.intervals import Z_975, chi2_above
from luts.runs import RunTable, read_run
from luts.schema import (
    Conditions,
    DeviceHeader,
    Entry,
    Floor,
    Header,
    Lut,
    Setting,
    SettingHeader,
)

if TYPE_CHECKING:
    import argparse

# Runs of one operation whose differences had less than this probability are told apart.
DISAGREE_BELOW = 0.01
RUNS_DISAGREE = "runs-disagree"
# Nothing is known better than this: a spread of 0 over few resamples must not take all the weight.
MIN_RELATIVE_SD = 1e-3
MIN_SD_US = 1e-4
# A block whose reference took this much longer than the fastest is told from the others.
SLOW_FRAC = 0.05
# Storing finer than a tenth of a nanosecond only makes files longer.
DECIMALS = 4
# Facts of the device that unlike runs must share; the rest is kept in the header where all runs agree on it.
_DEVICE_ALIKE = ("cpu", "soc", "governor", "private_cache_bytes", "shared_cache_bytes")


def at_one_speed(runs: Sequence[RunTable]) -> list[RunTable]:
    """The runs as if the host had been as fast all the time as when its reference model was fastest.

    Every block measures the reference model beside its op models. Where a block's reference took longer than the
    fastest one of the same setting, its entries took longer too: they are divided by that ratio and, beyond
    ``SLOW_FRAC``, flagged ``host-slow``. Entries of runs that do not tell their reference stay as they are.
    """
    best: dict[Setting, float] = {}
    for run in runs:
        known = [reference for reference in run.references_us if reference is not None]
        if known:
            best[run.setting] = min(best.get(run.setting, math.inf), *known)
    return [replace(run, entries=tuple(_at_speed(run, best.get(run.setting)))) for run in runs]


def _at_speed(run: RunTable, best_us: float | None) -> Iterator[Entry]:
    for position, entry in enumerate(run.entries):
        reference = run.references_us[position] if run.references_us else None
        if best_us is None or reference is None:
            yield entry
            continue
        factor = best_us / reference
        yield replace(
            entry,
            latency_us=entry.latency_us * factor,
            latency_us_low=entry.latency_us_low * factor,
            latency_us_high=entry.latency_us_high * factor,
            latency_us_replicates=tuple(value * factor for value in entry.latency_us_replicates),
            flags=(*entry.flags, "host-slow") if factor < 1 - SLOW_FRAC else entry.flags,
        )


def build(runs: Sequence[RunTable], *, created_by: str | None = None) -> Lut:
    """Merge runs into one table.

    Raises :class:`~luts.errors.UnlikeConditionsError` where the runs' device or conditions differ, and
    :class:`~luts.errors.RequestError` for no run, or one run given twice. Runs may differ in their setting (delegate,
    threads, core cluster): that is a dimension of the table. What several runs measured is pooled (:func:`pooled`).
    """
    if not runs:
        raise RequestError("a table needs at least one run")
    ids = [run.run.run_id for run in runs]
    if len(set(ids)) != len(ids):
        twice = next(run_id for run_id in ids if ids.count(run_id) > 1)
        raise RequestError(f"run {twice} is given twice; each run counts once")
    _require_alike(runs)
    runs = at_one_speed(runs)
    measured: dict[tuple[str, str, Setting], list[Entry]] = {}
    for run in runs:
        for entry in run.entries:
            measured.setdefault((entry.key, entry.context, entry.setting), []).append(entry)
    entries = _same_width([pooled(group) for _, group in sorted(measured.items(), key=lambda item: item[0])])
    failed = {(item.key, item.context or "", item.setting): item for run in runs for item in run.failed}
    succeeded = measured.keys() | {(key, "", setting) for key, _, setting in measured}
    return Lut(
        header=Header(
            created_by=created_by or _created_by(),
            device=_common_device([run.device for run in runs]),
            conditions=runs[0].conditions,
            settings=tuple(
                SettingHeader(setting, _common_floor([run.floor for run in runs if run.setting == setting]))
                for setting in sorted({run.setting for run in runs})
            ),
            runs=tuple(run.run for run in runs),
        ),
        entries=tuple(map(_rounded, entries)),
        failed=tuple(item for identity, item in sorted(failed.items()) if identity not in succeeded),
        elp_nas=tuple(item for run in runs for item in run.elp_nas),
    )


def _require_alike(runs: Sequence[RunTable]) -> None:
    for field in Conditions.__slots__:
        _require_equal(field, {run.run.run_id: getattr(run.conditions, field) for run in runs})
    for field in _DEVICE_ALIKE:
        _require_equal(f"device {field}", {run.run.run_id: getattr(run.device, field) for run in runs})


def _require_equal(field: str, values: Mapping[str, object]) -> None:
    if len(set(values.values())) > 1:
        first = next(iter(values.values()))
        odd = next(source for source, value in values.items() if value != first)
        raise UnlikeConditionsError(field, {next(iter(values)): first, odd: values[odd]})


def _common_device(devices: Sequence[DeviceHeader]) -> DeviceHeader:
    shared = set(devices[0].facts).intersection(*(device.facts for device in devices))
    common = {
        name: getattr(devices[0], name) if len({getattr(device, name) for device in devices}) == 1 else None
        for name in DeviceHeader.__slots__
        if name != "facts"
    }
    return DeviceHeader(**common, facts=tuple(sorted(shared, key=lambda fact: fact[0])))


def _common_floor(floors: Sequence[Floor | None]) -> Floor | None:
    told = [floor for floor in floors if floor is not None]
    if not told:
        return None
    return Floor(
        round(float(np.mean([floor.latency_us for floor in told])), DECIMALS),
        round(min(floor.latency_us_low for floor in told), DECIMALS),
        round(max(floor.latency_us_high for floor in told), DECIMALS),
    )


def _same_width(entries: list[Entry]) -> list[Entry]:
    """Cut all replicates to the length of the shortest: any resample is as good as another."""
    widths = {len(entry.latency_us_replicates) for entry in entries} - {0}
    if len(widths) <= 1:
        return entries
    width = min(widths)
    return [replace(entry, latency_us_replicates=entry.latency_us_replicates[:width]) for entry in entries]


def standard_error_us(entry: Entry) -> float:
    """The standard error of an entry's latency, from its resamples or else from its interval; never 0."""
    if len(entry.latency_us_replicates) >= 2:
        sd = float(np.std(entry.latency_us_replicates, ddof=1))
    else:
        sd = (entry.latency_us_high - entry.latency_us_low) / 2 / Z_975
    return max(sd, MIN_RELATIVE_SD * abs(entry.latency_us), MIN_SD_US)


def pooled(entries: Sequence[Entry]) -> Entry:
    """One entry from several runs' measurements of the same operation, weighted by inverse variance.

    Where the runs differ by more than their intervals explain (chi square, 1 %), the entry is flagged
    ``runs-disagree``; whenever chi square exceeds its degrees of freedom the interval is widened by the root of their
    ratio (the Birge ratio), so that a disagreement is never averaged away.
    """
    if len(entries) == 1:
        return entries[0]
    values = np.array([entry.latency_us for entry in entries])
    errors = np.array([standard_error_us(entry) for entry in entries])
    weights = errors**-2 / np.sum(errors**-2)
    mean = float(weights @ values)
    chi2 = float(np.sum(((values - mean) / errors) ** 2))
    dof = len(entries) - 1
    widen = max(1.0, (chi2 / dof) ** 0.5)
    error = widen * float(np.sum(errors**-2)) ** -0.5
    flags = list(dict.fromkeys(flag for entry in entries for flag in entry.flags))
    if chi2_above(chi2, dof) < DISAGREE_BELOW and RUNS_DISAGREE not in flags:
        flags.append(RUNS_DISAGREE)
    fixed = [entry.fixed_us for entry in entries]
    return replace(
        entries[0],
        n_values=tuple(sorted({n for entry in entries for n in entry.n_values})),
        latency_us=mean,
        latency_us_low=mean - Z_975 * error,
        latency_us_high=mean + Z_975 * error,
        latency_us_replicates=_pooled_replicates(entries, weights, widen),
        fixed_us=None if None in fixed else float(weights @ np.array(fixed, dtype=np.float64)),
        method="; ".join(dict.fromkeys(entry.method for entry in entries)),
        rounds=sum(entry.rounds for entry in entries),
        invocations=sum(entry.invocations for entry in entries),
        flags=tuple(flags),
        run_ids=tuple(run_id for entry in entries for run_id in entry.run_ids),
        **_pooled_energy(entries, weights),
    )


def _pooled_replicates(entries: Sequence[Entry], weights: np.ndarray[Any, Any], widen: float) -> tuple[float, ...]:
    width = min(len(entry.latency_us_replicates) for entry in entries)
    if width == 0:
        return ()
    replicates = weights @ np.array([entry.latency_us_replicates[:width] for entry in entries])
    middle = replicates.mean()
    return tuple((middle + widen * (replicates - middle)).tolist())


def _pooled_energy(entries: Sequence[Entry], weights: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Energy figures averaged with the same weights where every run has them, else none."""
    names = ("energy_uj", "energy_uj_low", "energy_uj_high", "charge_uah", "charge_uah_low", "charge_uah_high")
    found: dict[str, Any] = {}
    for name in names:
        values = [getattr(entry, name) for entry in entries]
        found[name] = None if None in values else float(weights @ np.array(values, dtype=np.float64))
    simulated = {entry.power_simulated for entry in entries}
    found["power_simulated"] = True if True in simulated else False if False in simulated else None
    return found


def _rounded(entry: Entry) -> Entry:
    return replace(
        entry,
        latency_us=round(entry.latency_us, DECIMALS),
        latency_us_low=round(entry.latency_us_low, DECIMALS),
        latency_us_high=round(entry.latency_us_high, DECIMALS),
        latency_us_replicates=tuple(round(value, DECIMALS) for value in entry.latency_us_replicates),
        fixed_us=None if entry.fixed_us is None else round(entry.fixed_us, DECIMALS),
    )


def _created_by() -> str:
    from luts.command import program

    return program()


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m luts.build",
        description="Make a table from one or more finished runs. Runs taken under unlike conditions are refused.",
        epilog="exit status: 0 written, 2 not (unlike runs, an unreadable file).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories (or their operations.json)")
    parser.add_argument("-o", "--output", required=True, metavar="TABLE", help="the table file to write")
    parser.add_argument("--csv", metavar="FILE", help="also write the entries as CSV")
    parser.add_argument("--parquet", metavar="FILE", help="also write the entries as Parquet (needs pandas, pyarrow)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of the table's path")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, guarded

    arguments = _parser().parse_args(argv)

    def work() -> int:
        from luts import views
        from luts.storage import save

        lut = build([read_run(path) for path in arguments.runs])
        save(lut, arguments.output)
        if arguments.csv:
            views.write_csv(lut, arguments.csv)
        if arguments.parquet:
            views.write_parquet(lut, arguments.parquet)
        keys = {entry.key for entry in lut.entries}
        disagree = [entry.key for entry in lut.entries if RUNS_DISAGREE in entry.flags]
        if arguments.json:
            found = {
                "lut": str(arguments.output),
                "entries": len(lut.entries),
                "operations": len(keys),
                "failed": len(lut.failed),
                "runs": [run.run_id for run in lut.header.runs],
                "runs_disagree": disagree,
            }
            print(json.dumps(found, indent=1))
        else:
            print(arguments.output)
        runs = len(arguments.runs)
        print(
            f"{len(lut.entries)} entries of {len(keys)} operations from {runs} run{'' if runs == 1 else 's'}, "
            f"{len(lut.failed)} could not be measured",
            file=sys.stderr,
        )
        if disagree:
            print(f"note: the runs disagree on {len(disagree)} entries; their intervals are widened", file=sys.stderr)
        print(f"next: python -m luts.predict NETWORK.tflite --lut {arguments.output}", file=sys.stderr)
        return DONE

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
