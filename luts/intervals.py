"""The few distributions that intervals and comparisons need, in closed form (no SciPy).

Tested against SciPy; see Abramowitz and Stegun, Handbook of Mathematical Functions, 26.4 (chi square) and 26.7 (t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from luts.schema import Calibration, Discrepancy

Floats = npt.NDArray[np.float64]

Z_975 = 1.959963984540054
# 97.5 % quantile of Student's t for 1..12 degrees of freedom; above, the expansion is good to 4 digits.
_T_975 = (
    12.706205,
    4.302653,
    3.182446,
    2.776445,
    2.570582,
    2.446912,
    2.364624,
    2.306004,
    2.262157,
    2.228139,
    2.200985,
    2.178813,
)


def t_975(dof: float | None) -> float:
    """97.5 % quantile of Student's t with ``dof`` >= 1 degrees of freedom, of the normal for None.

    >>> round(t_975(4), 3), round(t_975(None), 3)
    (2.776, 1.96)
    """
    if dof is None or math.isinf(dof):
        return Z_975
    if dof < 1:
        raise ValueError(f"a t distribution needs at least 1 degree of freedom, not {dof}")
    if dof <= len(_T_975):
        lower = int(dof)
        if lower == dof:
            return _T_975[lower - 1]
        # Between two whole numbers the quantile's logarithm is close to linear in 1/dof.
        share = (1 / lower - 1 / dof) / (1 / lower - 1 / (lower + 1))
        return math.exp((1 - share) * math.log(_T_975[lower - 1]) + share * math.log(_T_975[lower]))
    z = Z_975
    return (
        z
        + (z**3 + z) / (4 * dof)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
    )


def normal_two_sided(z: float) -> float:
    """Probability that a standard normal lies at least |z| from 0."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi2_above(value: float, dof: int) -> float:
    """Probability that chi square with a whole number ``dof`` >= 1 of degrees of freedom exceeds ``value``."""
    if value <= 0:
        return 1.0
    if value > 1400:  # exp(-value / 2) is 0 in a double
        return 0.0
    half = value / 2
    if dof % 2 == 0:
        term = total = math.exp(-half)
        for index in range(1, dof // 2):
            term *= half / index
            total += term
        return min(total, 1.0)
    total = math.erfc(math.sqrt(half))
    term = math.sqrt(half / math.pi) * math.exp(-half) * 2
    for index in range(1, dof // 2 + 1):
        total += term
        term *= half / (index + 0.5)
    return min(total, 1.0)


def adjusted(p_values: Sequence[float], method: str) -> Floats:
    """P values corrected for their number: ``holm`` (no false claim at all) or ``bh`` (few among the claims)."""
    p = np.asarray(p_values, dtype=np.float64)
    n = p.size
    order = np.argsort(p, kind="stable")
    ranked = p[order]
    if method == "holm":
        corrected = np.maximum.accumulate(ranked * np.arange(n, 0, -1))
    elif method == "bh":
        corrected = np.minimum.accumulate((ranked * n / np.arange(1, n + 1))[::-1])[::-1]
    else:
        raise ValueError(f"no correction named {method!r}; there are 'holm' and 'bh'")
    found = np.empty(n)
    found[order] = np.minimum(corrected, 1.0)
    return found


def discrepancy_half_width(discrepancy: Discrepancy, calibration: Calibration | None) -> float:
    """Half the 95 % interval, on the log scale, that the discrepancy alone gives to one new network.

    A scale fitted on k networks adds its own uncertainty: sd * sqrt(1 + 1/k).
    """
    factor = 1.0 if calibration is None else math.sqrt(1 + 1 / calibration.networks)
    return t_975(discrepancy.dof) * discrepancy.relative_sd * factor


def prediction_interval(
    totals_us: Floats, replicates_us: Floats, extra_sd_us: Floats | float, discrepancy_log: float
) -> tuple[Floats, Floats]:
    """95 % prediction intervals of totals from their resamples and the discrepancy.

    ``totals_us`` has shape (n,), ``replicates_us`` (n, R) with R >= 0: each total recomputed on R resamples of the
    rounds; ``extra_sd_us`` is a standard deviation for what has no resamples; ``discrepancy_log`` the half-width of the
    discrepancy on the log scale. Below and above, the distance of the 2.5 % and 97.5 % quantile of the resamples from
    their median (not from the total: resampling a minimum is biased upwards) is combined in quadrature with the rest.
    """
    size = np.maximum(np.abs(totals_us), 1e-12)
    if replicates_us.shape[-1] >= 2:
        low, middle, high = np.quantile(replicates_us, (0.025, 0.5, 0.975), axis=-1)
        below, above = (middle - low) / size, (high - middle) / size
    else:
        below = above = np.zeros_like(size)
    rest = (Z_975 * np.asarray(extra_sd_us) / size) ** 2 + discrepancy_log**2
    lows = totals_us * np.exp(-np.minimum(np.sqrt(below**2 + rest), 700.0))
    highs = totals_us * np.exp(np.minimum(np.sqrt(above**2 + rest), 700.0))
    return np.minimum(lows, highs), np.maximum(lows, highs)
