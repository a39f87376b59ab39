"""Claims about operator profiles: real ones match their file row by row, broken ones are refused, sums add up."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ModelRunError
from harness.runtimes import litert_c, op_compare, op_profile
from harness.runtimes.op_profile import (
    GroupTiming,
    OpProfile,
    ProfileMismatchError,
    ProfileUnavailableError,
    group_timings,
    profile_model,
    quiet_mean,
)
from op_models import graph as graphs
from op_models.errors import ModelFileError
from tests.op_models import built

positive_us = st.floats(0.01, 1e6)


@pytest.fixture(scope="module", params=sorted(built.NETWORKS))
def profiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OpProfile]:
    path = tmp_path_factory.mktemp("profiled") / f"{request.param}.tflite"
    path.write_bytes(built.NETWORKS[request.param]())
    return path, profile_model(path, runs=4, warmups=1)


# --- the real profiler -----------------------------------------------------------------------------------------


def test_a_profile_has_a_row_for_every_operator_that_is_executed(profiled: tuple[Path, OpProfile]) -> None:
    path, profile = profiled
    network = graphs.read(path)
    rows = {row.operator: row for row in profile.operators}
    for operator in network.live:
        assert rows[operator.index].name == operator.name
        assert rows[operator.index].runs == 4
        assert rows[operator.index].latency_us_mean >= 0
    assert profile.model_sha256 == network.sha256
    assert profile.runtime_version.startswith("2.3.")


def test_groups_take_what_their_operators_take_together(profiled: tuple[Path, OpProfile]) -> None:
    path, profile = profiled
    network = graphs.read(path)
    timings = group_timings(profile, network)
    assert [timing.key for timing in timings] == [group.spec.key for group in network.groups]
    rows = {row.operator: row for row in profile.operators}
    total = sum(rows[operator.index].latency_us_mean for operator in network.live)
    assert sum(timing.latency_us_mean for timing in timings) == pytest.approx(total)


def test_a_profile_is_stored_and_read_back(profiled: tuple[Path, OpProfile]) -> None:
    _, profile = profiled
    assert OpProfile.model_validate_json(profile.model_dump_json()) == profile


def test_folded_operators_are_no_part_of_any_group(tmp_path: Path) -> None:
    path = tmp_path / "f16.tflite"
    path.write_bytes(built.network_f16())
    network = graphs.read(path)
    timings = group_timings(profile_model(path, runs=2), network)
    assert not {operator for timing in timings for operator in timing.operators} & network.folded


def test_a_network_that_the_runtime_cannot_run_is_told_from_a_missing_profiler(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        code = model.operatorCodes[0]
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = b"Nobody"

    path = tmp_path / "custom.tflite"
    path.write_bytes(built.edited(built.network_f32(), change))
    with pytest.raises(ModelRunError, match="Nobody"):
        profile_model(path, runs=1)


def test_a_file_that_is_no_model_never_reaches_the_library(tmp_path: Path) -> None:
    path = tmp_path / "torn.tflite"
    path.write_bytes(built.network_f32()[:200])
    with pytest.raises(ModelFileError):
        profile_model(path)


def test_another_version_of_the_library_gives_no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(built.network_f32())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.4.1")
    with pytest.raises(ProfileUnavailableError, match=r"found 2\.4\.1"):
        profile_model(path)


# --- the process around it -------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_crash_in_the_library_is_no_crash_here() -> None:
    with pytest.raises(ProfileUnavailableError, match=r"ended with -11; its last words: going down"):
        op_profile._answer(
            python("import os, sys; print('going down', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"),
            60,
            "m",
        )


def test_silence_and_nonsense_are_no_profile() -> None:
    for said in ("", "print('not json')"):
        with pytest.raises(ProfileUnavailableError, match="ended with 0"):
            op_profile._answer(python(said), 60, "m")


def test_a_profile_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(ProfileUnavailableError, match=r"longer than 0\.2 s"):
        op_profile._answer(python("import time; time.sleep(60)"), 0.2, "m")


def test_a_library_without_the_functions_is_said_to_be_so(tmp_path: Path) -> None:
    import ctypes.util

    model = tmp_path / "net.tflite"
    model.write_bytes(built.network_f32())
    libc = ctypes.util.find_library("c") or "libc.so.6"
    command = [sys.executable, "-m", "harness.runtimes.litert_c", str(model), "--library", libc]
    with pytest.raises(ProfileUnavailableError, match="LiteRtCreateEnvironment"):
        op_profile._answer(command, 60, "m")


# --- are these events? -----------------------------------------------------------------------------------------


def events(count: int) -> np.ndarray[Any, Any]:
    made = np.zeros(count, litert_c.EVENT)
    made["tag"], made["type"] = 4096, 2
    made["node"], made["start_us"], made["elapsed_us"] = np.arange(count), 10 * np.arange(count), 9
    return made


def test_events_of_operators_are_taken_and_others_left_out() -> None:
    given_events = events(5)
    given_events["type"][0] = 1
    given_events["subgraph"][4] = 1
    assert litert_c.check(given_events, 5)["node"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [("type", 0), ("type", 3), ("node", 5), ("node", 0), ("start_us", 10**6), ("elapsed_us", 2**63), ("tag", 0)],
)
def test_events_that_cannot_be_are_refused(field: str, value: int) -> None:
    wrong = events(5)
    wrong[field][2] = value
    with pytest.raises(litert_c.ProfilerError):
        litert_c.check(wrong, 5)


@given(noise=st.binary(min_size=104, max_size=1040))
def test_random_bytes_are_hardly_ever_events(noise: bytes) -> None:
    wrong = np.frombuffer(noise[: len(noise) // 104 * 104], litert_c.EVENT)
    try:
        taken = litert_c.check(wrong, 3)
    except litert_c.ProfilerError:
        return
    assert (taken["node"] < 3).all()


def test_an_event_is_104_bytes_with_room_for_the_memory_figures() -> None:
    assert litert_c.EVENT.itemsize == 104


# --- statistics ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60))
def test_the_quiet_mean_lies_among_the_fast_runs(elapsed_us: list[int]) -> None:
    value = quiet_mean(elapsed_us)
    assert min(elapsed_us) <= value <= float(np.mean(elapsed_us)) + 1e-6


@given(quiet=st.integers(20, 10_000), disturbed=st.lists(st.integers(20_000, 10**6), max_size=20))
def test_disturbed_runs_do_not_count_as_long_as_they_are_fewer_than_three_quarters(quiet: int, disturbed: list[int]) -> None:
    runs = [quiet] * (len(disturbed) + 2) + disturbed
    assert quiet_mean(runs) == quiet


# --- per group, against a table --------------------------------------------------------------------------------


def profile_of(data: bytes, latency_us: float = 5.0) -> OpProfile:
    network = graphs.parse(data)
    return OpProfile(
        model="m",
        model_sha256=network.sha256,
        runtime_version="2.3.0",
        kernels="builtin",
        threads=1,
        seed=0,
        warmups=1,
        runs=1,
        network_us_mean=1.0,
        network_us_quiet=1.0,
        operators=tuple(op_profile._timing(o.index, o.name, [int(latency_us)]) for o in network.operators),
    )


def test_a_profile_of_another_file_is_refused() -> None:
    with pytest.raises(ProfileMismatchError, match="other content"):
        group_timings(profile_of(built.network_f32()), graphs.parse(built.network_i8()))


def test_rows_in_another_order_are_refused() -> None:
    profile = profile_of(built.network_f32())
    first, second, *rest = profile.operators
    swapped = (
        first.model_copy(update={"operator": second.operator}),
        second.model_copy(update={"operator": first.operator}),
        *rest,
    )
    with pytest.raises(ProfileMismatchError, match="profiled as"):
        group_timings(profile.model_copy(update={"operators": swapped}), graphs.parse(built.network_f32()))


def test_a_missing_row_is_refused() -> None:
    profile = profile_of(built.network_f32())
    with pytest.raises(ProfileMismatchError, match="no row"):
        group_timings(profile.model_copy(update={"operators": profile.operators[:-1]}), graphs.parse(built.network_f32()))


def timing(key: str, latency_us: float) -> GroupTiming:
    return GroupTiming(key, (0,), latency_us, latency_us)


def test_a_comparison_averages_over_the_places_of_an_operation_and_sorts_by_what_matters() -> None:
    timings = [timing("a", 10), timing("a", 20), timing("b", 100), timing("c", 7)]
    table = {"a": {"hot": 14.0, "cold": 20.0}, "b": {"hot": 90.0}}
    found = op_compare.compare(timings, table, mixture=(0.5, 0.0), model="m")
    rows = {row.key: row for row in found.operations}
    assert [row.key for row in found.operations] == ["b", "a", "c"]
    assert (rows["a"].in_network_us, rows["a"].table_us, rows["a"].difference_us) == (15, 17, 4)
    assert (rows["c"].table_us, rows["c"].difference_us) == (None, None)
    assert (found.in_network_us, found.table_us, found.missing, found.missing_us) == (130, 124, 1, 7)
    assert found.difference_frac == pytest.approx(124 / 130 - 1)
    text = op_compare.comparison_report(found)
    assert "table 124 us, in the network 130 us (-4.6 %)" in text
    assert "lacks 1 groups of 7 us" in text


def test_a_table_that_covers_nothing_has_no_difference() -> None:
    found = op_compare.compare([timing("a", 10)], {})
    assert math.isnan(found.difference_frac)
    assert found.missing == 1


@given(hot=positive_us, cold=positive_us, far=positive_us, a=st.floats(0, 1), b=st.floats(0, 1))
def test_costs_are_mixed_as_predictions_mix_them(hot: float, cold: float, far: float, a: float, b: float) -> None:
    contexts = {"hot": hot, "cold": cold, "far": far}
    assert op_compare.cost_us(contexts, (a, b)) == hot + a * (cold - hot) + b * (far - cold)
    assert op_compare.cost_us({"hot": hot}, (a, b)) == hot
    assert op_compare.cost_us({"cold": cold}, (a, b)) == cold
    assert op_compare.cost_us({"hot": hot, "cold": cold}, (a, b)) == op_compare.cost_us(
        {"hot": hot, "cold": cold, "far": cold}, (a, b)
    )
    assert math.isnan(op_compare.cost_us({}, (a, b)))


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), positive_us), min_size=1, max_size=20),
    st.dictionaries(st.sampled_from("abc"), positive_us),
)
def test_every_microsecond_is_either_compared_or_missing(rows: list[tuple[str, float]], costs: dict[str, float]) -> None:
    found = op_compare.compare([timing(*row) for row in rows], {key: {"hot": us} for key, us in costs.items()})
    assert found.in_network_us + found.missing_us == pytest.approx(sum(us for _, us in rows))
    assert sum(row.count for row in found.operations) == len(rows)
    assert found.table_us == pytest.approx(sum(costs.get(key, 0.0) for key, _ in rows))


@given(content=st.binary(max_size=100) | st.text(max_size=60).map(lambda text: json.dumps({"entries": [text]}).encode()))
def test_any_bytes_as_a_table_are_refused(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with pytest.raises(ProfileMismatchError):
            op_compare.read_table(file.name)


def test_a_latency_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"entries": [{"key": "a", "context": "hot", "latency_us": NaN}]}')
    with pytest.raises(ProfileMismatchError, match="nan"):
        op_compare.read_table(path)


# --- command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_a_profile_and_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, table = tmp_path / "i8.tflite", tmp_path / "operations.json"
    path.write_bytes(built.network_i8())
    keys = [group.spec.key for group in graphs.read(path).groups]
    entries = [{"key": key, "context": "hot", "latency_us": 3.0} for key in keys[:-1]]
    table.write_text(json.dumps({"conditions": {"delegate": "xnnpack"}, "entries": entries}))
    assert op_profile.main([str(path), "--runs", "2", "--table", str(table), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert [group["key"] for group in content["groups"]] == keys
    assert content["comparison"]["missing"] == 1
    assert "xnnpack" in captured.err
    assert op_profile.main([str(path), "--runs", "2"]) == 0
    out = capsys.readouterr().out
    assert "RELU" in out
    assert "us a run" in out


def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(built.network_i8())
    for arguments in ([str(tmp_path / "none.tflite")], [str(path), "--runs", "1", "--table", str(path)]):
        assert op_profile.main(arguments) == 2
        captured = capsys.readouterr()
        assert len(captured.err.strip().splitlines()) == 1
        assert not captured.out
    with pytest.raises(SystemExit) as caught:
        op_profile.main([str(path), "--runs", "none"])
    assert caught.value.code == 2


def test_no_profiler_is_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(built.network_i8())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.0")
    assert op_profile.main([str(path)]) == 3
    assert "no operator profile" in capsys.readouterr().err


def test_a_profile_can_be_pinned_to_a_core(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(built.network_i8())
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    assert profile_model(path, runs=1, core=core).runs == 1
