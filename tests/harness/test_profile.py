from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import rundir
from harness.errors import ExitCode
from harness.profile import duration_s, main
from harness.verify import verify
from op_models import graph
from tests.harness.fake_bench import plan_text
from tests.harness.processes import interruptible
from tests.harness.scripted_run import recordings
from tests.op_models.built import edited, network_f32

SMALL = plan_text(rounds_min=3, rounds_max=4, burst_us=50)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a directory of its own, and with the signals as they were."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "small plan.toml"
    path.write_text(SMALL)
    return path


def files(directory: Path) -> set[str]:
    return {item.name for item in directory.iterdir()}


# --- what the command line says ---------------------------------------------------------------------------------


def test_help_names_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert told.err == ""
    for status in ExitCode:
        assert str(int(status)) in told.out.partition("exit status:")[2]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1.5h", 5400), (" 2m ", 120), ("0.5s", 0.5)]
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@given(text=st.one_of(st.text(max_size=12), st.from_regex(r"[-0-9.eE]{0,6}[smhd]?", fullmatch=True)))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        seconds = duration_s(text)
    except argparse.ArgumentTypeError as error:
        assert "write 90s, 10m or 1h" in str(error)
    else:
        assert 0 < seconds < 1e10
        assert text.strip()[-1] in "smh"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plan", "a.toml", "--model", "b.tflite"],
        ["--plan", "a.toml", "--resume", "runs/x"],
        ["--resume", "runs/x", "--out", "y"],
        ["--resume", "runs/x", "--dry-run"],
        ["--budget", "10"],
        ["--budget", "-3m"],
        ["--budget", "forever"],
        ["--model"],
        ["--speed", "fast"],
        ["some.tflite"],
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == ExitCode.BAD_REQUEST
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: " in told.err.splitlines()[-1]
    assert files(tmp_path) == set()


# --- dry runs ---------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_measured_and_writes_no_run(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", str(plan), "--out", "it", "--dry-run", "--budget", "2m"]) == ExitCode.DONE
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert first == "2 operations as 8 jobs in 2 blocks"
    assert second.startswith("3 to 4 rounds: about ")
    assert second.endswith("stopped after about 120 s")
    assert files(tmp_path) == {plan.name}


def test_a_dry_run_can_be_read_by_a_program(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", str(plan), "--dry-run", "--json"]) == ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)
    assert (facts["jobs"], facts["operations"], facts["blocks"], facts["rounds"]) == (8, 2, 2, [3, 4])
    low, high = facts["expected_s"]
    assert 0 <= low <= high


# --- runs -------------------------------------------------------------------------------------------------------


def test_a_run_prints_its_table_and_its_directory_and_talks_on_the_other_channel(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", str(plan), "--out", "a run"]) == ExitCode.DONE
    told = capsys.readouterr()
    head, *rows, directory = told.out.splitlines()
    assert head.split() == ["latency", "us", "95", "%", "interval", "context", "operation"]
    assert len(rows) == 2
    assert directory == "a run"
    assert told.err.splitlines()[0] == "measuring 8 op models into a run"
    assert told.err.splitlines()[-1] == "next: python -m luts.build 'a run' -o lut.json"
    assert verify(tmp_path / "a run") == []
    manifest = rundir.read_run(tmp_path / "a run").manifest
    assert manifest.command == ("python", "-m", "harness.profile", "--plan", str(plan), "--out", "a run")
    assert (tmp_path / "a run" / "plan.toml").read_text() == SMALL


def test_the_outcome_can_be_read_by_a_program(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", str(plan), "--out", "run", "--json"]) == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == "run"
    assert (told["finished"], told["failed"], told["cannot_be_lifted"]) == (8, {}, {})
    assert 0 < told["measured_s"] < told["wall_s"]


def test_without_a_name_a_run_goes_to_runs(tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", str(plan)]) == ExitCode.DONE
    (made,) = (tmp_path / "runs").iterdir()
    assert capsys.readouterr().out.splitlines()[-1] == f"runs/{made.name}"


def test_every_operation_of_a_file_never_seen_before_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.tflite").write_bytes(network_f32())
    assert main(["--model", "net.tflite", "--out", "run", "--budget", "1s"]) == ExitCode.DONE
    table = json.loads((tmp_path / "run" / "derived" / "operations.json").read_bytes())
    assert {entry["key"] for entry in table["entries"]} == {group.spec.key for group in graph.parse(network_f32()).groups}
    assert all(entry["latency_us"] > 0 for entry in table["entries"])


def test_a_custom_operator_is_told_and_the_others_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: Any) -> None:
        (code,) = [code for code in model.operatorCodes if code.builtinCode == 25]  # the SOFTMAX
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = "Unheard"
        (operator,) = [op for op in model.subgraphs[0].operators if model.operatorCodes[op.opcodeIndex] is code]
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    (tmp_path / "net.tflite").write_bytes(edited(network_f32(), change))
    assert main(["--model", "net.tflite", "--out", "run", "--budget", "1s"]) == ExitCode.SOME_JOBS_FAILED
    told = capsys.readouterr()
    assert "Unheard" in told.err
    assert "Traceback" not in told.err
    table = json.loads((tmp_path / "run" / "derived" / "operations.json").read_bytes())
    assert len({entry["key"] for entry in table["entries"]}) == 6
    assert {item["key"].partition("(")[0] for item in table["failed"]} == {"CUSTOM:Unheard"}
    assert verify(tmp_path / "run") == []


def test_an_operation_that_cannot_be_arranged_is_told_and_makes_the_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(model: Any) -> None:
        (operator,) = [op for op in model.subgraphs[0].operators if len(op.inputs) == 3 and op.inputs[2] == -1]
        operator.inputs = operator.inputs[:1]  # a dense layer without weights

    (tmp_path / "net.tflite").write_bytes(edited(network_f32(), change))
    assert main(["--model", "net.tflite", "--dry-run"]) == ExitCode.DONE
    assert "cannot be measured: FULLY_CONNECTED(" in capsys.readouterr().out
    assert main(["--model", "net.tflite", "--out", "run", "--budget", "1s"]) == ExitCode.SOME_JOBS_FAILED
    assert "cannot be measured: FULLY_CONNECTED(" in capsys.readouterr().err
    table = json.loads((tmp_path / "run" / "derived" / "operations.json").read_bytes())
    assert len({entry["key"] for entry in table["entries"]}) == 6


# --- requests that are wrong ------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: ExitCode = ExitCode.BAD_REQUEST) -> str:
    """The one sentence with which a request is refused."""
    assert main(arguments) == status
    told = capsys.readouterr()
    assert told.out == ""
    (sentence,) = told.err.splitlines()
    return sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"dear reader", "net.tflite is not a readable .tflite model"),
        (b"", "net.tflite is not a readable .tflite model"),
        (network_f32()[:900], "net.tflite"),
        (b"\0" * 4 + b"TFL3" + b"\xff" * 99, "net.tflite"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "net.tflite").write_bytes(content)
    assert words in refused(capsys, "--model", "net.tflite", "--out", "run")
    assert "run" not in files(tmp_path)


def test_a_model_of_open_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shapeSignature = np.array([1, -1, 8, 3], np.int32)

    (tmp_path / "net.tflite").write_bytes(edited(network_f32(), change))
    assert "open" in refused(capsys, "--model", "net.tflite")


def test_all_mistakes_of_a_plan_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text('plan_format = 1\n[operations]\nspaces = ["nas"]\n[measure]\nround_min = 3\n')
    sentence = refused(capsys, "--plan", "plan.toml")
    assert "operations.spaces.0: there is no space 'nas'" in sentence
    assert "measure.round_min: there is no such setting; the nearest is rounds_min" in sentence
    assert "2 problems" in sentence


def test_a_core_that_is_not_there_is_no_such_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(SMALL + "[device]\ncore = 4000\n")
    for more in (["--dry-run"], []):
        assert "core 4000" in refused(capsys, "--plan", "plan.toml", *more, status=ExitCode.NO_SUCH_HARDWARE)


def test_a_directory_that_is_taken_is_refused(tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    assert "letter.txt" in refused(capsys, "--plan", str(plan), "--out", "taken")
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "--plan", str(plan), "--out", "file")
    main(["--plan", str(plan), "--out", "run"])
    capsys.readouterr()
    assert "already holds a run" in refused(capsys, "--plan", str(plan), "--out", "run")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "file/run" in refused(capsys, "--plan", str(plan), "--out", "file/run", status=ExitCode.SOME_JOBS_FAILED)


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "foreign", "half-made"])
def test_what_is_no_run_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("x")
    elif kind != "absent":
        path.mkdir()
    if kind == "foreign":
        (path / "letter.txt").write_text("dear")
    if kind == "half-made":
        (path / "plan.toml").write_text(SMALL)
    before = files(tmp_path)
    sentence = refused(capsys, "--resume", "run")
    assert "start it again" in sentence if kind == "half-made" else "is not a run directory" in sentence
    assert files(tmp_path) == before


def test_a_run_with_a_flipped_byte_is_not_resumed(tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--plan", str(plan), "--out", "run"])
    capsys.readouterr()
    path = tmp_path / "run" / "raw" / "b001" / "00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "expected sha256" in refused(capsys, "--resume", "run")


def test_a_finished_run_can_be_asked_for_its_table_again(tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--plan", str(plan), "--out", "run"])
    first = capsys.readouterr().out
    (tmp_path / "run" / "derived" / "operations.json").write_text("not json")
    kept = recordings(tmp_path / "run")
    assert main(["--resume", "run"]) == ExitCode.DONE
    assert capsys.readouterr().out == first
    assert recordings(tmp_path / "run") == kept


# --- as a process -----------------------------------------------------------------------------------------------


def started(*arguments: str, **given: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "harness.profile", *arguments]
    return subprocess.Popen(command, env=environment, preexec_fn=interruptible, **given)  # noqa: PLW1509 (resets a signal)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, plan: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started("--plan", str(plan), "--out", "run", stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == ExitCode.DONE
    assert "Traceback" not in said
    assert verify(tmp_path / "run") == []


def test_a_refusal_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    with started("--model", "absent.tflite", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        told, said = process.communicate(timeout=120)
    assert process.returncode == ExitCode.BAD_REQUEST
    assert told == b""
    assert said.count(b"\n") == 1
    assert b"absent.tflite does not exist" in said
