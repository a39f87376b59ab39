"""The closed forms agree with SciPy, and a prediction interval covers what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from luts.intervals import (
    adjusted,
    chi2_above,
    discrepancy_half_width,
    normal_two_sided,
    prediction_interval,
    t_975,
)
from luts.schema import Calibration, Discrepancy


@given(st.floats(1, 500))
def test_t_quantiles_agree_with_scipy(dof: float) -> None:
    # Between 1 and 2 degrees of freedom the quantile is only interpolated; nothing there depends on its digits.
    assert t_975(dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=0.03 if dof < 3 else 2e-3)


@pytest.mark.parametrize("dof", [1, 2, 4, 12, 13, 40])
def test_t_quantiles_of_whole_degrees_of_freedom_are_exact_to_four_digits(dof: int) -> None:
    assert t_975(dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=5e-5)


def test_no_degrees_of_freedom_mean_the_normal() -> None:
    assert t_975(None) == pytest.approx(stats.norm.ppf(0.975))
    with pytest.raises(ValueError, match="at least 1"):
        t_975(0.5)


@given(st.floats(0, 1300), st.integers(1, 60))
def test_chi_square_agrees_with_scipy(value: float, dof: int) -> None:
    assert chi2_above(value, dof) == pytest.approx(stats.chi2.sf(value, dof), rel=1e-8, abs=1e-300)


@given(st.floats(-30, 30))
def test_normal_tails_agree_with_scipy(z: float) -> None:
    assert normal_two_sided(z) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_benjamini_hochberg_agrees_with_scipy(p_values: list[float]) -> None:
    expected = stats.false_discovery_control(p_values) if p_values else []
    np.testing.assert_allclose(adjusted(p_values, "bh"), expected)


def test_holm_multiplies_the_smallest_by_all_and_stays_monotonic() -> None:
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03], "holm"), [0.03, 0.06, 0.06])


def test_a_fitted_scale_widens_the_interval() -> None:
    discrepancy = Discrepancy(0.02, 4.0, 4, "networks")
    bare = discrepancy_half_width(discrepancy, None)
    assert bare == pytest.approx(stats.t.ppf(0.975, 4) * 0.02, rel=1e-4)
    assert discrepancy_half_width(discrepancy, Calibration(1, 1, 1, 4)) == pytest.approx(bare * 1.25**0.5)


def test_an_interval_covers_95_percent_of_new_networks() -> None:
    rng = np.random.default_rng(3)
    n = 4000
    truth = rng.uniform(100, 5000, n)
    totals = truth * np.exp(0.02 * rng.standard_normal(n))  # the table's sampling error
    measured = truth * np.exp(0.03 * rng.standard_normal(n))  # the networks' discrepancy
    replicates = totals[:, None] * np.exp(0.02 * rng.standard_normal((n, 40)))
    low, high = prediction_interval(totals, replicates, 0.0, 1.96 * 0.03)
    assert 0.94 <= np.mean((measured >= low) & (measured <= high)) <= 0.96


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(-1e6, 1e6), max_size=8),
    st.floats(0, 1e6),
    st.floats(0, 50),
)
def test_an_interval_is_ordered_and_holds_its_total(
    total: float, replicates: list[float], extra: float, discrepancy: float
) -> None:
    low, high = prediction_interval(np.array([total]), np.array([replicates]), extra, discrepancy)
    assert low[0] <= total <= high[0]


def test_a_biased_resampling_does_not_push_the_total_out_of_its_interval() -> None:
    low, high = prediction_interval(np.array([10.0]), np.array([[11.0, 11.5, 12.0]]), 0.0, 0.0)
    assert low[0] < 10.0 < high[0]
