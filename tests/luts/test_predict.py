"""A prediction is the sum it claims to be, with a true interval, and never a number for what is not known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import luts
from luts.errors import RequestError, UnknownOpError
from luts.lookup import CostTable
from luts.predict import main, predict, predict_keys
from luts.schema import Calibration, DeviceHeader, Discrepancy, Lut
from tests.luts import tables

NO_CACHE = DeviceHeader(cpu="a cpu")


def small_table(*, device: DeviceHeader = NO_CACHE, discrepancy: Discrepancy | None = None) -> Lut:
    return tables.lut(
        [tables.entry(tables.ADD, 2.0, sd_us=0.1, seed=1), tables.entry(tables.CONV, 5.0, sd_us=0.2, seed=2)],
        floor_us=1.0,
        device=device,
        discrepancy=discrepancy,
    )


def test_a_network_costs_its_operations_and_the_floor(tmp_path: Path) -> None:
    found = predict(tables.network(tmp_path / "n.tflite"), small_table())
    assert found.latency_us == pytest.approx(1 + 3 * 5 + 2)
    assert [part.latency_us for part in found.parts] == [5.0, 5.0, 5.0, 2.0]
    assert sum(part.latency_us for part in found.parts) + found.overhead_us == pytest.approx(found.latency_us)
    assert (found.coverage_frac, found.misses, found.lower_bound) == (1.0, (), False)


def test_contexts_blend_by_their_shares() -> None:
    entries = [tables.entry(tables.CONV, us, context) for us, context in ((5.0, "hot"), (9.0, "cold"), (12.0, "far"))]
    table = tables.lut(entries).table()
    for shares, expected in (((0, 0), 5), ((0.25, 0), 6), ((1, 0), 9), ((1, 0.5), 10.5), ((1, 1), 12)):
        assert predict_keys([tables.CONV] * 2, table, shares=shares).latency_us == pytest.approx(2 * expected)


def test_the_footprint_decides_the_shares() -> None:
    small = predict_keys([tables.CONV], small_table().table())
    assert (small.cold_frac, small.far_frac) == (0, 0)
    caches = replace(NO_CACHE, private_cache_bytes=256, shared_cache_bytes=512)
    large = predict_keys([tables.CONV] * 1000, small_table(device=caches).table())
    assert (large.cold_frac, large.far_frac) == (1, 1)


@pytest.mark.parametrize("context", ["hot", "cold", "far"])
@pytest.mark.parametrize("shares", [(0, 0), (1, 0), (1, 1), (0.5, 0)])
def test_an_operation_measured_in_one_context_costs_the_same_in_all(context: str, shares: tuple[float, float]) -> None:
    table = tables.lut([tables.entry(tables.CONV, 5.0, context)]).table()
    assert predict_keys([tables.CONV], table, shares=shares).latency_us == pytest.approx(5)


def test_a_context_that_was_not_measured_costs_what_the_nearest_does() -> None:
    table = tables.lut([tables.entry(tables.CONV, 5.0), tables.entry(tables.CONV, 8.0, "cold")]).table()
    assert predict_keys([tables.CONV], table, shares=(1, 1)).latency_us == pytest.approx(8)
    table = tables.lut([tables.entry(tables.CONV, 8.0, "cold"), tables.entry(tables.CONV, 9.0, "far")]).table()
    assert predict_keys([tables.CONV], table, shares=(0, 0)).latency_us == pytest.approx(8)


def test_a_missing_operation_is_an_error_that_lists_all_misses() -> None:
    table = tables.lut([tables.entry(tables.CONV, 5.0)]).table()
    with pytest.raises(UnknownOpError, match="and of 1 other operation") as raised:
        predict_keys([tables.ADD, tables.conv_key(), tables.CONV, tables.ADD], table)
    assert [(miss.key, miss.count) for miss in raised.value.misses] == [(tables.ADD, 2), (tables.conv_key(), 1)]
    assert raised.value.misses[1].nearest == (tables.CONV,)


def test_a_partial_prediction_is_a_lower_bound_and_says_so() -> None:
    found = predict_keys([tables.ADD, tables.CONV], tables.lut([tables.entry(tables.CONV, 5.0)]).table(), partial=True)
    assert found.latency_us == 5.0
    assert found.lower_bound
    assert math.isinf(found.latency_us_high)
    assert "partial" in found.flags
    assert found.coverage_frac == 0.5
    assert found.as_json()["latency_us_high"] is None


def test_a_calibration_scales_the_total_and_leaves_the_entries() -> None:
    bare = small_table()
    header = replace(bare.header.settings[0], calibration=Calibration(1.1, 1.0, 1.2, 5))
    scaled = Lut(replace(bare.header, settings=(header,)), bare.entries)
    keys = [tables.ADD, tables.CONV]
    assert predict_keys(keys, scaled.table()).latency_us == pytest.approx(1.1 * predict_keys(keys, bare.table()).latency_us)
    assert scaled.table().get(tables.ADD).latency_us == 2.0


@given(st.floats(0, 0.1), st.integers(1, 30))
def test_the_discrepancy_widens_the_interval(sd: float, dof: int) -> None:
    keys = [tables.ADD, tables.CONV]
    wide = predict_keys(keys, small_table(discrepancy=Discrepancy(sd, dof, 5, "networks")).table())
    exact = predict_keys(keys, small_table().table())
    assert wide.latency_us_low <= exact.latency_us_low <= wide.latency_us <= exact.latency_us_high
    assert exact.latency_us_high <= wide.latency_us_high


def test_errors_of_one_operation_add_up_where_it_is_repeated() -> None:
    table = small_table().table()
    once = predict_keys([tables.CONV], table)
    often = predict_keys([tables.CONV] * 100, table)
    width = (often.latency_us_high - often.latency_us_low) / (once.latency_us_high - once.latency_us_low)
    assert width == pytest.approx(100, rel=0.1)  # not 10: it is the same error every time


@pytest.mark.parametrize("width", [0, 40])
def test_entries_without_resamples_use_their_interval(width: int) -> None:
    entries = [tables.entry(tables.CONV, 100.0, sd_us=2.0, width=width), tables.entry(tables.ADD, 50.0, width=width)]
    found = predict_keys([tables.CONV, tables.ADD], tables.lut(entries).table())
    assert (found.latency_us_high - found.latency_us_low) / 2 == pytest.approx(1.96 * 2.0, rel=0.15)


def test_a_flag_of_an_entry_reaches_the_prediction() -> None:
    table = tables.lut([tables.entry(tables.ADD, 1.0, flags=("nonlinear",))]).table()
    assert "entry:nonlinear" in predict_keys([tables.ADD], table).flags


@given(st.permutations([tables.ADD] * 7 + [tables.CONV] * 5), st.floats(0.5, 2))
def test_the_order_of_operations_changes_no_digit(keys: list[str], scale: float) -> None:
    base = tables.lut([tables.entry(tables.ADD, 0.1), tables.entry(tables.CONV, 0.7)])
    header = replace(base.header.settings[0], calibration=Calibration(scale, scale, scale, 5))
    table = Lut(replace(base.header, settings=(header,)), base.entries).table()
    assert predict_keys(keys, table).latency_us == predict_keys(sorted(keys), table).latency_us


@pytest.mark.parametrize("latency_us", [-50.0, 1e308])
@pytest.mark.filterwarnings("error")
def test_entries_that_add_up_to_no_latency_are_refused(latency_us: float) -> None:
    table = tables.lut([tables.entry(tables.ADD, latency_us)]).table()
    with pytest.raises(RequestError, match=r"luts\.lint"):
        predict_keys([tables.ADD] * 4, table)


def test_an_empty_network_costs_the_floor() -> None:
    found = predict_keys([], small_table().table())
    assert found.latency_us == pytest.approx(1.0)
    assert found.coverage_frac == 1.0


def test_the_command_prints_one_object_or_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lut, path = str(tmp_path / "l.json"), str(tables.network(tmp_path / "n.tflite"))
    luts.save(small_table(), lut)
    assert main([path, "--lut", lut, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["latency_us"] == 18.0
    assert {"latency_us_low", "latency_us_high", "coverage_frac", "misses"} <= one.keys()
    assert main([path, path, "--lut", lut, "--json", "--parts"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert [item["latency_us"] for item in several] == [18.0, 18.0]
    assert len(several[0]["parts"]) == 4


def test_the_command_talks_on_stderr_and_names_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lut, path = str(tmp_path / "l.json"), str(tables.network(tmp_path / "n.tflite"))
    luts.save(small_table(), lut)
    assert main([path, "--lut", lut, "--parts"]) == 0
    said = capsys.readouterr()
    assert "18.0 us" in said.out
    assert said.err.strip().splitlines()[-1].startswith("next: python -m luts.validate")


def test_the_command_refuses_in_one_sentence_and_shows_a_lower_bound_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lut, path = str(tmp_path / "l.json"), str(tables.network(tmp_path / "n.tflite"))
    luts.save(tables.lut([tables.entry(tables.ADD, 2.0)]), lut)
    assert main([path, "--lut", lut]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: no measurement of CONV_2D")
    assert said.err.count("\n") == 1
    assert main([path, "--lut", lut, "--partial"]) == 0
    said = capsys.readouterr()
    assert "lower bound" in said.out
    assert "missing 3 x CONV_2D" in said.out
    assert main([str(tmp_path / "none.tflite"), "--lut", lut]) == 2
    assert main([path, "--lut", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# --- operations whose cost depends on their data ---------------------------------------------------------------

RELU = "RELU(i8.t[1x8x8x4])->i8.t[1x8x8x4]"


def branching_table(*, ends: bool = True) -> CostTable:
    entries = [tables.entry(RELU, 6.0, "cold")]
    if ends:
        entries += [tables.entry(f"{RELU};signs=one", 2.0, "cold"), tables.entry(f"{RELU};signs=even", 10.0, "cold")]
    return tables.lut(entries).table()


@pytest.mark.parametrize(("mixing", "latency_us"), [(0.0, 2.0), (0.25, 4.0), (1.0, 10.0)])
def test_a_branching_operation_lies_between_its_ends_by_the_mixing_of_its_signs(mixing: float, latency_us: float) -> None:
    table = branching_table()
    found = predict_keys([RELU, RELU], table, mixings={0: mixing})
    assert found.parts[0].latency_us == pytest.approx(latency_us)
    assert found.parts[1].latency_us == pytest.approx(6.0)
    assert found.latency_us - found.overhead_us == pytest.approx(latency_us + 6.0)
    assert "data-dependent" in found.flags


def test_not_knowing_the_data_widens_the_interval() -> None:
    def half_width(table: CostTable, **known: float) -> float:
        found = predict_keys([RELU], table, mixings={0: known["mixing"]} if known else None)
        return (found.latency_us_high - found.latency_us_low) / found.latency_us

    assert half_width(branching_table(), mixing=0.5) < half_width(branching_table())
    plain = predict_keys([tables.CONV], tables.lut([tables.entry(tables.CONV, 6.0, "cold")]).table())
    assert (plain.latency_us_high - plain.latency_us_low) / plain.latency_us < half_width(branching_table(ends=False))
