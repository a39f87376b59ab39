"""Checks a run directory: every recorded byte against its hash, every derived number against the raw data.

``python -m harness.verify RUN`` finds a flipped byte, a removed attempt and an edited number.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import operation_table, rundir
from harness.errors import ExitCode, HarnessError
from harness.integrity import Finding, check_integrity
from op_models.console import with_output


def verify(path: Path) -> list[Finding]:
    """Everything that is wrong with a run, and remarks (``is_error`` False). Raises NotARunError for another directory."""
    # CHECKSUMS and the journal both tell of a changed file.
    findings = list({(finding.path, finding.message): finding for finding in check_integrity(path)}.values())
    if any(finding.is_error or finding.kind == "half-made" for finding in findings):
        return findings  # derived numbers would be computed from data that is known to be wrong, or not there
    directory = path / "derived"
    try:
        run = rundir.read_run(path)
        expected = operation_table.files(operation_table.compute(run))
    except HarnessError as error:
        return [*findings, Finding("derived", "derived", str(error), is_error=True)]
    for name, data in expected.items():
        file = directory / name
        if not file.is_file():
            lost = run.is_closed
            text = "the derived table is missing; it can be computed again from the raw data"
            findings.append(Finding("derived", f"derived/{name}", text, is_error=lost))
        elif file.read_bytes() != data:
            text = "differs from what the raw data give"
            findings.append(Finding("derived", f"derived/{name}", text, is_error=True))
    return findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.verify",
        description="Check that a run directory holds what was measured and that its table follows from it.",
        epilog="exit status: 0 sound, 1 something is wrong, 2 no run directory.",
    )
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    chosen = parser.parse_args(arguments)
    return with_output(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    wrong = False
    listed = []
    half_made, open_runs = False, []
    for path in chosen.run:
        try:
            findings = verify(path)
        except HarnessError as error:
            print(error, file=sys.stderr)
            return ExitCode.BAD_REQUEST
        errors = [finding for finding in findings if finding.is_error]
        wrong = wrong or bool(errors)
        half_made = half_made or any(finding.kind == "half-made" for finding in findings)
        if any(finding.kind == "derived" for finding in findings) and all(each.kind == "derived" for each in errors):
            open_runs.append(path)
        listed.append(
            {
                "run": str(path),
                "sound": not errors,
                "findings": [{"path": f.path, "message": f.message, "is_error": f.is_error} for f in findings],
            }
        )
        if not chosen.json:
            for finding in findings:
                print(f"{'error' if finding.is_error else 'note'}: {finding.path}: {finding.message}")
            print(f"{path}: {'sound' if not errors else f'{len(errors)} errors'}")
    if chosen.json:
        print(json.dumps(listed, indent=1))
    elif open_runs:  # to be gone on with, or to have its table computed again
        print(f"next: python -m harness.profile --resume {shlex.quote(str(open_runs[0]))}", file=sys.stderr)
    elif not wrong and not half_made:
        print(f"next: python -m luts.build {shlex.join(map(str, chosen.run))} -o lut.json", file=sys.stderr)
    return ExitCode.SOME_JOBS_FAILED if wrong else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
