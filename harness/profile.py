"""The main command: measures every operation that a plan (or a set of ``.tflite`` files) asks for.

``python -m harness.profile`` with nothing else runs the default plan on this computer.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from harness import plan as plans
from harness.errors import ExitCode, HarnessError, InterruptedRunError
from harness.plan import Plan
from harness.runner import Outcome, Settings, prepare, resume, run
from op_models.console import with_output
from op_models.errors import OpModelError

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_ROWS_SHOWN = 24


def duration_s(text: str) -> float:
    """Seconds of a text such as ``90s``, ``10m`` or ``1.5h``.

    >>> duration_s("10m")
    600.0
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh])", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 10m or 1h")
    return float(found[1]) * _UNITS_S[found[2]]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m harness.profile",
        description="Measure what each operation costs, into a run directory that ends with a table of operations.",
        epilog="exit status: 0 all measured, 1 some jobs failed, 2 the request is wrong, 3 no such hardware, "
        "130 stopped (go on with --resume).",
    )
    source = found.add_mutually_exclusive_group()
    source.add_argument("--plan", type=Path, metavar="FILE", help="what to measure and how (TOML); default: the shipped plan")
    source.add_argument("--model", type=Path, nargs="+", metavar="FILE", help="measure every operation of these .tflite files")
    source.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped or killed")
    found.add_argument("--out", type=Path, metavar="DIR", help="run directory to make (default: runs/DATE-TIME)")
    found.add_argument("--dry-run", action="store_true", help="say what would be measured and about how long it takes")
    found.add_argument("--budget", type=duration_s, metavar="TIME", help="stop adding rounds after this long: 90s, 10m, 1h")
    found.add_argument("--json", action="store_true", help="print the outcome as JSON")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parser()
    chosen = options.parse_args(arguments)
    if chosen.resume is not None and (chosen.out is not None or chosen.dry_run):
        options.error("--resume takes neither --out nor --dry-run")
    command = ("python", "-m", "harness.profile", *(sys.argv[1:] if arguments is None else arguments))
    return with_output(lambda: _main(chosen, command))


def _main(chosen: argparse.Namespace, command: tuple[str, ...]) -> int:
    try:
        return _run(chosen, command)
    except InterruptedRunError as error:
        print(f"{error}\nnext: python -m harness.profile --resume {_quoted(error.path)}", file=sys.stderr)
        return error.exit_code
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OpModelError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_REQUEST
    except KeyboardInterrupt:
        again = "start it again" if chosen.resume is None else f"python -m harness.profile --resume {_quoted(chosen.resume)}"
        print(f"stopped before anything was measured\nnext: {again}", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(chosen: argparse.Namespace, command: tuple[str, ...]) -> int:
    from harness.progress import Progress

    with Progress() as progress:
        settings = Settings(watcher=progress, budget_s=chosen.budget, command=command)
        _stop_on_terminate()
        if chosen.resume is not None:
            outcome = resume(chosen.resume, settings)
        else:
            plan, text = _plan(chosen)
            settings.plan_directory = Path.cwd() if chosen.plan is None else chosen.plan.resolve().parent
            if chosen.dry_run:
                print(_forecast(plan, settings, chosen.json))
                return ExitCode.DONE
            outcome = run(plan, text, chosen.out or _new_directory(), settings)
    _report(outcome, chosen.json)
    return ExitCode.SOME_JOBS_FAILED if outcome.failed or outcome.unliftable else ExitCode.DONE


def _plan(chosen: argparse.Namespace) -> tuple[Plan, str]:
    if chosen.plan is not None:
        return plans.read(chosen.plan)
    if chosen.model is not None:
        return plans.for_models(tuple(chosen.model))
    return plans.shipped()


def _new_directory() -> Path:
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def _stop_on_terminate() -> None:
    """Lets a polite request to end (SIGTERM) stop a run as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _forecast(plan: Plan, settings: Settings, as_json: bool) -> str:
    expansion, _ = prepare(plan, settings)
    measure = plan.measure
    per_round_s = len(expansion.jobs) * (measure.burst_us * 1.5 + 200) / 1e6
    low, high = per_round_s * measure.rounds_min, per_round_s * measure.rounds_max
    facts = {
        "jobs": len(expansion.jobs),
        "operations": len(expansion.keys),
        "blocks": len({job.block for job in expansion.jobs}),
        "rounds": [measure.rounds_min, measure.rounds_max],
        "expected_s": [round(low, 1), round(high, 1)],
        "cannot_be_lifted": expansion.unliftable,
    }
    if as_json:
        return json.dumps(facts, indent=1)
    limit = "" if settings.budget_s is None else f", stopped after about {settings.budget_s:g} s"
    lines = [
        f"{facts['operations']} operations as {facts['jobs']} jobs in {facts['blocks']} blocks",
        f"{measure.rounds_min} to {measure.rounds_max} rounds: about {low:.0f} to {high:.0f} s{limit}",
    ]
    lines += [f"cannot be measured: {key} ({reason})" for key, reason in expansion.unliftable.items()]
    return "\n".join(lines)


def _report(outcome: Outcome, as_json: bool) -> None:
    table = json.loads((outcome.path / "derived" / "operations.json").read_bytes())
    if as_json:
        facts: dict[str, Any] = {
            "run": str(outcome.path),
            "finished": outcome.finished,
            "failed": outcome.failed,
            "cannot_be_lifted": outcome.unliftable,
            "measured_s": round(outcome.measured_s, 3),
            "wall_s": round(outcome.wall_s, 3),
        }
        print(json.dumps(facts, indent=1))
    else:
        print("\n".join(_rows(table)))
        print(outcome.path)
    for name, reason in outcome.failed.items():
        print(f"job {name} failed: {reason}", file=sys.stderr)
    for key, reason in outcome.unliftable.items():
        print(f"cannot be measured: {key} ({reason})", file=sys.stderr)
    share = 0.0 if outcome.wall_s == 0 else outcome.measured_s / outcome.wall_s
    quoted = _quoted(outcome.path)
    print(
        f"{outcome.finished} jobs finished, {len(outcome.failed)} failed; {outcome.wall_s:.0f} s, "
        f"{100 * share:.0f} % of it inside measured inference\nnext: python -m luts.build {quoted} -o lut.json",
        file=sys.stderr,
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _rows(table: dict[str, Any]) -> list[str]:
    entries = sorted(table["entries"], key=lambda entry: -entry["latency_us"])
    rows = [f"{'latency us':>11} {'95 % interval':>21} {'context':>7}  operation"]
    for entry in entries[:_ROWS_SHOWN]:
        interval = f"{entry['latency_us_low']:.2f} .. {entry['latency_us_high']:.2f}"
        flags = f"  [{', '.join(entry['flags'])}]" if entry["flags"] else ""
        key = entry["key"] if len(entry["key"]) <= 110 else entry["key"][:107] + "..."
        rows.append(f"{entry['latency_us']:11.2f} {interval:>21} {entry['context']:>7}  {key}{flags}")
    if len(entries) > _ROWS_SHOWN:
        rows.append(f"and {len(entries) - _ROWS_SHOWN} cheaper ones in derived/operations.csv")
    return rows


if __name__ == "__main__":
    sys.exit(main())
