"""Look-ups are exact, misses come with what is near, and bulk costs are the sums that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luts import lookup
from luts.errors import RequestError, SettingError, UnknownOpError
from luts.predict import predict_keys
from luts.schema import DeviceHeader, Discrepancy, FailedEntry, Lut, Setting
from op_models.spaces.base import CountMatrix
from tests.luts import tables

OTHER = Setting("none", 1, "cpu1")


def small_table() -> Lut:
    return tables.lut(
        [
            tables.entry(tables.ADD, 2.0, sd_us=0.1, seed=1),
            tables.entry(tables.CONV, 5.0, sd_us=0.2, seed=2),
            tables.entry(tables.CONV, 8.0, "cold", sd_us=0.2, seed=3),
            tables.entry(tables.conv_key(size=16), 50.0, "cold", sd_us=1.0, seed=4),
        ],
        floor_us=1.0,
        discrepancy=Discrepancy(0.03, None, 0, "prior"),
    )


def matrix(counts: list[list[float]], valid: list[bool] | None = None) -> CountMatrix:
    keys = (tables.ADD, tables.CONV, tables.conv_key(size=16))
    return CountMatrix(keys, np.array(counts, dtype=np.float32), np.array(valid or [True] * len(counts)))


def test_an_exact_key_is_found_in_its_context() -> None:
    table = small_table().table()
    assert table.get(tables.CONV, "cold").latency_us == 8.0
    assert table.contexts(tables.CONV) == ("hot", "cold")
    with pytest.raises(UnknownOpError):
        table.get(tables.ADD, "cold")


def test_a_miss_names_the_nearest_shape_of_the_same_operation() -> None:
    entries = [tables.entry(tables.conv_key(size=size), 1.0) for size in (4, 8, 32)]
    entries += [tables.entry(tables.conv_key(size=16).replace("stride=1x1", "stride=2x2"), 1.0)]
    entries += [tables.entry(tables.ADD, 1.0)]
    table = tables.lut(entries).table()
    assert table.nearest(tables.conv_key(size=14), 2) == (tables.conv_key(size=8), tables.conv_key(size=32))
    with pytest.raises(UnknownOpError) as raised:
        table.get(tables.conv_key(size=14))
    assert raised.value.nearest == tables.conv_key(size=8)
    assert tables.conv_key(size=8) in str(raised.value)


def test_a_miss_without_a_relative_falls_back_to_spelling_and_a_text_that_is_no_key_is_no_crash() -> None:
    table = tables.lut([tables.entry(tables.ADD, 1.0)]).table()
    assert table.nearest(tables.ADD.replace("ADD", "SUB")) == (tables.ADD,)
    assert table.nearest("???") == ()


def test_a_failed_attempt_is_told_with_the_miss() -> None:
    failed = FailedEntry(tables.CONV, "hot", tables.SETTING, "no kernel for it", "r1")
    table = Lut(small_table().header, (tables.entry(tables.ADD, 1.0),), (failed,)).table()
    with pytest.raises(UnknownOpError, match="it was tried: no kernel for it"):
        table.get(tables.CONV)


def test_coverage_counts_repeats() -> None:
    found = small_table().table().coverage([tables.ADD, tables.ADD, "MUL(f32[1])->f32[1]", tables.CONV])
    assert found.coverage_frac == 0.75
    assert [(miss.key, miss.count) for miss in found.misses] == [("MUL(f32[1])->f32[1]", 1)]


def test_settings_never_mix() -> None:
    entries = [tables.entry(tables.ADD, 2.0), tables.entry(tables.ADD, 20.0, setting=OTHER)]
    both = tables.lut(entries, settings=[tables.SETTING, OTHER])
    assert both.table(delegate="none").get(tables.ADD).latency_us == 20.0
    with pytest.raises(SettingError, match="picks 2 of the settings"):
        both.table()
    with pytest.raises(SettingError, match="threads 4 picks none"):
        both.table(threads=4)


def test_bulk_costs_are_counts_times_costs() -> None:
    costs = small_table().table().costs(matrix([[1, 2, 0], [0, 0, 3]]))
    np.testing.assert_allclose(costs.latency_us, [1 + 2 + 2 * 5, 1 + 150])  # small enough to be hot
    assert costs.latency_us.dtype == np.float64


@given(st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_bulk_and_single_predictions_are_the_same_at_every_footprint(counts: list[int]) -> None:
    base = small_table()
    keys = matrix([]).keys
    for private_bytes in (1 << 10, 1 << 13, 1 << 20):  # from mostly far to all hot
        device = DeviceHeader(private_cache_bytes=private_bytes, shared_cache_bytes=8 * private_bytes)
        table = Lut(replace(base.header, device=device), base.entries).table()
        bulk = table.costs(matrix([[float(count) for count in counts]]), intervals=True)
        listed = [key for key, count in zip(keys, counts, strict=True) for _ in range(count)]
        single = predict_keys(listed, table)
        assert bulk.latency_us_low is not None
        assert bulk.latency_us_high is not None
        np.testing.assert_allclose(
            [bulk.latency_us[0], bulk.latency_us_low[0], bulk.latency_us_high[0]],
            [single.latency_us, single.latency_us_low, single.latency_us_high],
        )


def test_a_long_matrix_is_added_up_in_pieces_that_fit_together() -> None:
    table = small_table().table()
    n = 2 * lookup._CHUNK + 5
    counts = np.random.default_rng(0).integers(0, 5, (n, 3)).astype(np.float32)
    long = table.costs(CountMatrix(matrix([]).keys, counts, np.ones(n, bool)), intervals=True)
    last = table.costs(CountMatrix(matrix([]).keys, counts[-7:], np.ones(7, bool)), intervals=True)
    assert long.latency_us.shape == (n,)
    assert long.latency_us_high is not None
    assert last.latency_us_high is not None
    np.testing.assert_allclose(long.latency_us[-7:], last.latency_us)
    np.testing.assert_allclose(long.latency_us_high[-7:], last.latency_us_high)


def test_no_networks_have_no_costs() -> None:
    empty = CountMatrix(matrix([]).keys, np.zeros((0, 3), np.float32), np.ones(0, bool))
    assert small_table().table().costs(empty, intervals=True).latency_us.shape == (0,)


def test_float32_costs_stay_float32_and_agree() -> None:
    table, counts = small_table().table(), matrix([[100, 20, 3]])
    fast = table.costs(counts, dtype=np.float32)
    assert fast.latency_us.dtype == np.float32
    np.testing.assert_allclose(fast.latency_us, table.costs(counts).latency_us, rtol=1e-6)


def test_a_disconnected_network_has_no_cost() -> None:
    costs = small_table().table().costs(matrix([[0, 0, 0], [1, 0, 0]], valid=[False, True]), intervals=True)
    assert np.isnan(costs.latency_us[0])
    assert costs.latency_us[1] == 3.0


def test_a_missing_operation_that_a_network_uses_is_an_error_and_one_that_none_uses_is_not() -> None:
    table = tables.lut([tables.entry(tables.ADD, 2.0)]).table()
    np.testing.assert_allclose(table.costs(matrix([[3, 0, 0]])).latency_us, [6.0])
    with pytest.raises(UnknownOpError, match="no measurement of CONV_2D"):
        table.costs(matrix([[3, 0, 0], [0, 1, 0]]))


def test_a_matrix_that_does_not_fit_its_keys_is_refused() -> None:
    with pytest.raises(RequestError, match="does not fit"):
        small_table().table().costs(CountMatrix((tables.ADD,), np.zeros((2, 3), np.float32), np.ones(2, bool)))


def test_the_prepared_table_is_kept() -> None:
    table = small_table()
    assert table.table() is table.table(threads=1)
