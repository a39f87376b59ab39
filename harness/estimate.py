"""From raw invocations to a cost with an interval: bursts, rounds, the slope over N, drift. numpy only.

Terms: a *burst* is one visit to a model (a warm-up and a few invocations); a *round* visits every model once. The value of
a burst is the least of its invocations, since whatever disturbs one only adds. The level of a model is a low quantile of
its bursts over rounds that are spread in time, so that a host's slow spells do not enter. Intervals come from resampling
whole rounds, the same rounds for all models, which keeps what the models of a round have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ClockName = Literal["thread-cpu", "wall"]

REPLICATES = 40
LEVEL_QUANTILE = 0.25
CONFIDENCE = 0.95
_TICK_US = 1e-3  # a coarse clock may say 0 of a tiny model; no clock knows better than a nanosecond


def burst_values(rows: NDArray[np.void], clock: ClockName, jobs: int) -> Floats:
    """Least time in us of each job's burst in the rows of one round, shape [jobs]; NaN where a job was not visited.

    The warm-up (``invoke`` 0) does not count.
    """
    counted = rows[rows["invoke"] > 0]
    column = counted["cpu_ns" if clock == "thread-cpu" else "wall_ns"].astype(np.float64)
    values = np.full(jobs, np.inf)
    np.minimum.at(values, counted["job"].astype(np.int64), column)
    values[np.isinf(values)] = np.nan
    return values / 1e3


def level(values: Floats, quantile: float = LEVEL_QUANTILE) -> Floats:
    """Level of each model over rounds: ``values`` is [..., rounds, jobs], the answer [..., jobs]. NaN rounds are left out."""
    with np.errstate(all="ignore"):
        ordered = np.sort(values, axis=-2)  # NaN sorts last
    counts = np.sum(~np.isnan(values), axis=-2)
    position = np.maximum(counts - 1, 0) * quantile
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(counts - 1, 0))
    low = np.take_along_axis(ordered, below[..., None, :], axis=-2)[..., 0, :]
    high = np.take_along_axis(ordered, above[..., None, :], axis=-2)[..., 0, :]
    answer: Floats = low + (position - below) * (high - low)
    return answer


def resamples(rounds: int, replicates: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of ``replicates`` resamples of ``rounds`` rounds, shape [replicates, rounds]; the same for a seed."""
    return np.random.default_rng(seed).integers(0, rounds, (replicates, rounds))


def levels_with_replicates(
    values: Floats, *, quantile: float = LEVEL_QUANTILE, replicates: int = REPLICATES, seed: int = 0
) -> tuple[Floats, Floats]:
    """(levels [jobs], the levels on resampled rounds [replicates, jobs]) of ``values`` [rounds, jobs]."""
    picked = values[resamples(values.shape[0], replicates, seed)]
    estimated = level(picked, quantile)
    own = level(values, quantile)
    # A resample may miss every round of a job that was visited rarely: then it says nothing new.
    return own, np.where(np.isnan(estimated), own, estimated)


@dataclass(frozen=True, slots=True)
class Slope:
    """Cost of one copy from op models with different N.

    ``cost_us`` the slope, ``fixed_us`` what an invocation costs beside the copies, ``replicates_us`` the slope on each
    resample, ``nonlinearity_frac`` by how much the op models leave the line, relative to the largest (None for two).
    """

    cost_us: float
    fixed_us: float
    replicates_us: Floats
    nonlinearity_frac: float | None


def slope(copies: Sequence[int], levels_us: Sequence[float], replicates_us: Floats) -> Slope:
    """Weighted least squares through (N, level); weights 1/level^2, since noise grows with the time measured.

    ``replicates_us`` is [replicates, len(copies)]. Raises ValueError for fewer than two different N.
    """
    n = np.asarray(copies, np.float64)
    times = np.asarray(levels_us, np.float64)
    if len(set(copies)) < 2:
        raise ValueError("a slope needs op models with at least two different N")
    weights = 1.0 / np.maximum(times, _TICK_US) ** 2
    mean_n = np.sum(weights * n) / np.sum(weights)
    factors = weights * (n - mean_n) / np.sum(weights * (n - mean_n) ** 2)
    # Sums, not matrix products: those round differently on another processor, where the run is verified.
    cost = float(np.sum(factors * times))
    fixed = float(np.sum(weights * times) / np.sum(weights) - cost * mean_n)
    nonlinearity = None
    if len(set(copies)) > 2:
        nonlinearity = float(np.max(np.abs(times - fixed - cost * n)) / max(np.max(times), _TICK_US))
    return Slope(cost, fixed, np.sum(replicates_us * factors, axis=1), nonlinearity)


def interval(estimate: float, replicates: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of an estimate from its values on resamples: normal, with their standard deviation.

    With few resamples a normal interval is steadier than their outer quantiles.
    """
    from statistics import NormalDist

    spread = float(np.std(replicates, ddof=1)) if len(replicates) > 1 else 0.0
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return estimate - reach, estimate + reach


def difference(first: Slope, second: Slope, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """(difference, low, high) of two costs whose replicates share resamples."""
    delta = first.cost_us - second.cost_us
    return (delta, *interval(delta, first.replicates_us - second.replicates_us, confidence))


def drift(reference_us: Floats) -> dict[str, Any]:
    """How steady the host was, from the reference model's value in each round.

    Gives its level, the spread of rounds (quartiles over the level) and the trend over the run, all as fractions.
    """
    seen = reference_us[~np.isnan(reference_us)]
    if seen.size < 3:
        return {"rounds": int(seen.size), "level_us": None, "spread_frac": None, "trend_frac": None, "slow_frac": None}
    base = float(level(seen[:, None])[0])
    unit = max(base, _TICK_US)
    time = np.linspace(-0.5, 0.5, seen.size)
    pairs = np.subtract.outer(seen, seen)[np.triu_indices(seen.size, 1)]
    gaps = np.subtract.outer(time, time)[np.triu_indices(seen.size, 1)]
    quartiles = np.quantile(seen, [0.25, 0.75])
    return {
        "rounds": int(seen.size),
        "level_us": base,
        "spread_frac": float((quartiles[1] - quartiles[0]) / unit),
        "trend_frac": float(np.median(pairs / gaps) / unit),
        "slow_frac": float(np.mean(seen > 1.2 * base)),
    }
