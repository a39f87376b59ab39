from __future__ import annotations

import contextlib
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import clock, units

AMOUNT = st.floats(1e-6, 1e12)


def test_the_examples_hold() -> None:
    for module in (units, clock):
        done = doctest.testmod(module)
        assert done.attempted > 0
        assert done.failed == 0


@given(amount=AMOUNT, voltage_uv=st.floats(1e5, 1e8))
def test_every_conversion_has_its_inverse(amount: float, voltage_uv: float) -> None:
    near = pytest.approx(amount)
    assert units.us_from_ns(units.ns_from_us(amount)) == near
    assert units.us_from_ms(units.ms_from_us(amount)) == near
    assert units.uj_from_mj(units.mj_from_uj(amount)) == near
    assert units.uj_from_j(units.j_from_uj(amount)) == near
    assert units.uah_from_uc(units.uc_from_uah(amount)) == near
    assert units.uc_from_uj(units.uj_from_uc(amount, voltage_uv=voltage_uv), voltage_uv=voltage_uv) == near
    assert units.uah_from_uj(units.uj_from_uah(amount, voltage_uv=voltage_uv), voltage_uv=voltage_uv) == near


@given(current_ua=AMOUNT, voltage_uv=st.floats(1e5, 1e8), duration_us=st.floats(1.0, 1e9))
def test_energy_by_power_and_by_charge_agree(current_ua: float, voltage_uv: float, duration_us: float) -> None:
    power = units.power_uw(current_ua=current_ua, voltage_uv=voltage_uv)
    by_power = units.energy_uj(power_uw=power, duration_us=duration_us)
    charge = units.charge_uc(current_ua=current_ua, duration_us=duration_us)
    assert by_power == pytest.approx(units.uj_from_uc(charge, voltage_uv=voltage_uv))
    assert units.mean_power_uw(energy_uj=by_power, duration_us=duration_us) == pytest.approx(power)


@given(duration_us=st.integers(0, 10**13))
def test_seconds_keep_whole_microseconds(duration_us: int) -> None:
    assert units.us_from_s(units.s_from_us(duration_us)) == duration_us


@given(number=st.integers(1, 999), unit=st.sampled_from(["us", "ms", "s", "m", "h"]))
def test_a_duration_reads_as_it_is_written(number: int, unit: str) -> None:
    scale = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}[unit]
    assert units.duration_us_of(f"{number}{unit}") == number * scale
    assert units.duration_us_of(f"1h {number}{unit}") == 3600 * 10**6 + number * scale


@given(text=st.text(max_size=12))
def test_any_other_text_is_no_duration_and_no_size(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert units.duration_us_of(text) >= 0
    size_bytes = units.bytes_of(text)
    assert size_bytes is None or size_bytes >= 0


@pytest.mark.parametrize("text", ["", "10", "m", "-5s", "1e3s", "10 minutes", "5s!", "nan s"])
def test_a_duration_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.duration_us_of(text)


@given(size_bytes=st.integers(0, 10**18), duration_us=st.floats(0, 1e13))
def test_text_for_people_is_short(size_bytes: int, duration_us: float) -> None:
    assert len(units.size_text(size_bytes)) <= 12
    told = units.duration_text(duration_us)
    assert len(told) <= 10
    assert units.duration_us_of(told) == pytest.approx(duration_us, rel=0.01, abs=0.6)


def test_a_virtual_clock_moves_only_when_slept_on() -> None:
    virtual = clock.VirtualClock()
    virtual.sleep_us(3)
    assert virtual.now_us() == virtual.now_us() == 3
    for each in (virtual, clock.SystemClock()):
        with pytest.raises(ValueError, match="cannot sleep"):
            each.sleep_us(-1)


def test_the_system_clock_sleeps_at_least_as_long() -> None:
    system = clock.SystemClock()
    start_us = system.now_us()
    system.sleep_us(2_000)
    assert system.now_us() - start_us >= 2_000
