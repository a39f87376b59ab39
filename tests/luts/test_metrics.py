"""Metrics agree with SciPy and with their definitions, also where values are tied."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from luts import metrics
from luts.errors import RequestError

tied = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


def same(ours: float, theirs: float) -> bool:
    return (np.isnan(ours) and np.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-9)


@given(tied)
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_rank_correlations_agree_with_scipy_where_values_are_tied(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    assert same(metrics.kendall(a, b), stats.kendalltau(a, b).statistic)
    assert same(metrics.spearman(a, b), stats.spearmanr(a, b).statistic)


@given(st.integers(2, 300), st.integers(0, 2**32 - 1))
def test_rank_correlations_agree_with_scipy_on_continuous_values(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(n)
    b = a + rng.standard_normal(n)
    assert same(metrics.kendall(a, b), stats.kendalltau(a, b).statistic)
    assert same(metrics.spearman(a, b), stats.spearmanr(a, b).statistic)


def test_kendall_of_a_hundred_thousand_networks_needs_no_quadratic_memory() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(100_000)
    b = a + rng.standard_normal(100_000)
    assert metrics.kendall(a, b) == pytest.approx(0.5, abs=0.01)  # a table of all pairs would take 40 GB


def test_errors_are_relative_to_the_measurement() -> None:
    measured, predicted = [100.0, 200.0, 400.0, 100.0], [110.0, 198.0, 400.0, 96.0]
    assert metrics.mape_frac(measured, predicted) == pytest.approx((0.1 + 0.01 + 0 + 0.04) / 4)
    assert metrics.mdape_frac(measured, predicted) == pytest.approx(0.025)
    assert metrics.max_ape_frac(measured, predicted) == pytest.approx(0.1)
    assert metrics.bias_frac(measured, predicted) == pytest.approx((0.1 - 0.01 - 0.04) / 4)
    assert metrics.rmse(measured, predicted) == pytest.approx(((100 + 4 + 16) / 4) ** 0.5)
    assert metrics.hits_frac(measured, predicted, 0.05) == 0.75
    assert metrics.hits_frac(measured, predicted, 0.10 + 1e-12) == 1.0


def test_an_interval_counts_both_of_its_ends() -> None:
    assert metrics.interval_coverage_frac([1, 2, 3], [1, 2.5, 0], [1, 3, 3]) == pytest.approx(2 / 3)
    assert metrics.median_half_width_frac([10, 10, 10], [9, 8, 5], [11, 12, 15]) == pytest.approx(0.2)


def test_a_score_without_intervals_has_no_coverage() -> None:
    bare = metrics.score([1.0, 2.0], [1.0, 2.0])
    assert (bare.interval_coverage_frac, bare.median_half_width_frac) == (None, None)
    assert bare.kendall == 1.0
    assert metrics.score([1.0, 2.0], [1.0, 2.0], [1, 1], [3, 3]).interval_coverage_frac == 1.0


@pytest.mark.parametrize(
    ("measured", "predicted"),
    [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([-1.0], [1.0]), ([float("nan")], [1.0]), ([1.0], [float("inf")])],
)
def test_values_that_cannot_be_scored_are_refused(measured: list[float], predicted: list[float]) -> None:
    with pytest.raises(RequestError):
        metrics.score(measured, predicted)
