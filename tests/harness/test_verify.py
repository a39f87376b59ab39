from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import plan as plans
from harness import runner
from harness.errors import ExitCode, InterruptedRunError, NotARunError, StorageError
from harness.runner import Settings
from harness.verify import main, verify
from op_models.artifact import ArtifactCache
from tests.faults import FaultyFileLayer
from tests.harness.fake_bench import FakeBench, plan_text


def stop_at(last: int) -> FakeBench:
    def act(number: int) -> None:
        if number == last:
            raise KeyboardInterrupt

    return FakeBench(before_round=act)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


def go(path: Path, cache: ArtifactCache, bench: FakeBench, files: FaultyFileLayer | None = None) -> None:
    text = plan_text(rounds_min=4, rounds_max=4)
    runner.run(plans.parse(text), text, path, Settings(cache=cache, bench=bench, files=files))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, cache: ArtifactCache) -> Path:
    """A finished run that was interrupted once, so that a block has two attempts."""
    path = tmp_path_factory.mktemp("runs") / "sound"
    with pytest.raises(InterruptedRunError):
        go(path, cache, stop_at(2))
    runner.resume(path, Settings(cache=cache, bench=FakeBench()))
    return path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run"
    shutil.copytree(sound, path)
    return path


def contents(path: Path) -> dict[str, str]:
    return {
        str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest() for item in path.rglob("*") if item.is_file()
    }


def errors(path: Path) -> list[str]:
    return [finding.path for finding in verify(path) if finding.is_error]


def test_a_sound_run_has_no_findings_and_is_not_touched(run: Path) -> None:
    before = contents(run)
    assert verify(run) == []
    assert contents(run) == before


RECORDED = st.sampled_from(["journal.jsonl", "jobs.json", "plan.toml", "manifest.json", "raw/b001/00001.npy", "CHECKSUMS"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(name=RECORDED, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(run: Path, name: str, place: float, bit: int) -> None:
    file = run / name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        assert errors(run)
    finally:
        file.write_bytes(whole)


def test_a_removed_round_is_found(run: Path) -> None:
    (run / "raw" / "b002" / "00003.npy").unlink()
    assert "raw/b002/00003.npy" in errors(run)


def test_a_removed_attempt_is_found_also_where_its_lines_are_removed_too(run: Path) -> None:
    (run / "raw" / "b001" / "00003.npy").unlink()
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "raw/b001/00003.npy" not in line]
    assert len(kept) == len(lines) - 1
    (run / "journal.jsonl").write_text("".join(kept))
    assert errors(run)


def test_a_removed_block_is_found(run: Path) -> None:
    shutil.rmtree(run / "raw" / "b001")
    assert len(errors(run)) >= 4


def test_rounds_that_changed_places_are_found(run: Path) -> None:
    first, second = (run / "raw" / "b001" / f"0000{i}.npy" for i in (0, 1))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert len(errors(run)) >= 2


def test_an_added_recording_is_found(run: Path) -> None:
    shutil.copy(run / "raw" / "b001" / "00000.npy", run / "raw" / "b001" / "00004.npy")
    assert errors(run)


@pytest.mark.parametrize("name", ["operations.json", "operations.csv"])
def test_an_edited_number_in_a_derived_table_is_found(run: Path, name: str) -> None:
    file = run / "derived" / name
    text = file.read_text()
    number = re.search(r"\d+\.\d{3,}", text)
    assert number is not None
    digit = "1" if number[0][-1] != "1" else "2"
    file.write_text(text[: number.end() - 1] + digit + text[number.end() :])
    assert errors(run) == [f"derived/{name}"]


@pytest.mark.parametrize("name", ["operations.json", "operations.csv"])
def test_a_lost_derived_table_is_found_and_computed_again_by_resuming(run: Path, cache: ArtifactCache, name: str) -> None:
    (run / "derived" / name).unlink()
    assert errors(run) == [f"derived/{name}"]
    (run / "derived" / name).mkdir()
    assert errors(run) == [f"derived/{name}"]
    (run / "derived" / name).rmdir()
    runner.resume(run, Settings(cache=cache, bench=FakeBench()))
    assert verify(run) == []


def test_an_interrupted_run_is_sound(tmp_path: Path, cache: ArtifactCache) -> None:
    with pytest.raises(InterruptedRunError):
        go(tmp_path / "run", cache, stop_at(5))
    assert errors(tmp_path / "run") == []


def test_a_half_made_run_is_a_remark(tmp_path: Path, cache: ArtifactCache) -> None:
    with pytest.raises(StorageError):
        go(tmp_path / "run", cache, FakeBench(), FaultyFileLayer(6, "full"))
    (finding,) = verify(tmp_path / "run")
    assert not finding.is_error


def test_another_directory_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(NotARunError):
        verify(tmp_path)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_says_that_a_run_is_sound_and_what_comes_next(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == ExitCode.DONE
    told = capsys.readouterr()
    assert told.out == f"{run}: sound\n"
    assert told.err.startswith(f"next: python -m luts.build {run}")


def test_the_command_tells_each_error_and_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "raw" / "b002" / "00003.npy").unlink()
    assert main([str(run)]) == ExitCode.SOME_JOBS_FAILED
    told = capsys.readouterr()
    assert "error: raw/b002/00003.npy: " in told.out
    assert told.err == ""


def test_the_command_takes_several_runs_and_prints_json(sound: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "derived" / "operations.csv").write_text("")
    assert main([str(sound), str(run), "--json"]) == ExitCode.SOME_JOBS_FAILED
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"run": str(sound), "sound": True, "findings": []}
    assert not second["sound"]
    assert [finding["path"] for finding in second["findings"]] == ["derived/operations.csv"]


def test_the_command_tells_of_a_changed_file_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "plan.toml").write_text("")
    assert main([str(run)]) == ExitCode.SOME_JOBS_FAILED
    assert capsys.readouterr().out.count("error: plan.toml: ") == 1


def test_a_changed_checksum_is_told_apart_from_the_one_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (run / "CHECKSUMS").read_text().splitlines()[0]
    end = "0" if line[63] != "0" else "1"
    (run / "CHECKSUMS").write_text((run / "CHECKSUMS").read_text().replace(line[:64], line[:63] + end))
    assert main([str(run)]) == ExitCode.SOME_JOBS_FAILED
    assert f"expected sha256 {line[:63]}{end}, found {line[:64]}" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["operations.json", "operations.csv"])
def test_a_run_without_its_table_is_to_be_resumed(run: Path, capsys: pytest.CaptureFixture[str], lost: str) -> None:
    (run / "derived" / lost).unlink()
    assert main([str(run)]) == ExitCode.SOME_JOBS_FAILED
    assert capsys.readouterr().err == f"next: python -m harness.profile --resume {run}\n"


def test_an_interrupted_run_is_to_be_resumed(tmp_path: Path, cache: ArtifactCache, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InterruptedRunError):
        go(tmp_path / "it", cache, stop_at(2))
    assert main([str(tmp_path / "it")]) == ExitCode.DONE
    assert capsys.readouterr().err == f"next: python -m harness.profile --resume {tmp_path / 'it'}\n"


def test_the_next_command_can_be_pasted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spaced = run.rename(run.with_name("a b"))
    assert main([str(spaced)]) == ExitCode.DONE
    assert capsys.readouterr().err == f"next: python -m luts.build '{spaced}' -o lut.json\n"


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "foreign"])
def test_the_command_refuses_what_is_no_run_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("x")
    elif kind != "absent":
        path.mkdir()
        if kind == "foreign":
            (path / "letter.txt").write_text("dear")
    assert main([str(path)]) == ExitCode.BAD_REQUEST
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "is not a run directory" in told.err
