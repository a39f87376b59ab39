"""Commands whose standard streams are closed, full, or left by their reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from op_models.console import with_output

def work():
    {work}
    return {status}

sys.exit(with_output(work))
"""


def ran(redirection: str, *, work: str, status: int = 0, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """What a program came to that does ``work`` with its streams redirected by the shell."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM.format(work=work, status=status)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("work", ["print('one')", "print('x' * 100000)"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_no_more_is_one_sentence(work: str, unbuffered: str) -> None:
    done = ran(">/dev/full", work=work, unbuffered=unbuffered)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["the output cannot be written: No space left on device"]


@pytest.mark.parametrize("status", [0, 1])
def test_a_reader_that_leaves_is_no_error_and_hides_none(status: int) -> None:
    done = ran("| true", work="import time; time.sleep(0.5); print('one')", status=status)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_swallow_what_they_are_given(redirection: str) -> None:
    work = "print('out'); print('err', file=sys.stderr); sys.stdout.isatty(), sys.stderr.isatty()"
    done = ran(redirection, work=work, status=1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    file = tmp_path / "file"
    done = ran("2>&-", work=f"import os; kept = open({str(file)!r}, 'w'); os.write(2, b'a library speaks')")
    assert (done.returncode, file.read_text()) == (0, "")


def test_an_error_of_the_work_is_not_taken_for_one_of_the_output() -> None:
    done = ran("", work="open('/nowhere/at/all')")
    assert "FileNotFoundError" in done.stderr
