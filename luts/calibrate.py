"""Learns a device's scale and discrepancy from whole networks: ``python -m luts.calibrate --measured M ...``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luts.errors import RequestError
from luts.intervals import Z_975, t_975
from luts.metrics import Floats, Values
from luts.schema import PRIOR_RELATIVE_SD, Calibration, Discrepancy, Lut, Setting, SettingHeader

if TYPE_CHECKING:
    import argparse

    from luts.measured import MeasuredNetwork

# A t interval accounts for few networks by itself, but with fewer degrees of freedom than this it says nothing useful:
# the shipped prior fills up what is missing.
LEAST_DOF = 3.0
# A residual beyond this many robust standard deviations counts as this many: one broken measurement must not set the
# width of every interval, but it must not vanish either. Generous, since families of networks differ in their spread.
CLIP_SD = 6.0
# Relative discrepancies below this are below what a retest of the same network shows.
MIN_RELATIVE_SD = 0.002


@dataclass(frozen=True, slots=True)
class Fit:
    """What k networks say about a table: one factor (1 with an empty interval where none was fitted) and the spread.

    ``residuals_log`` are log(measured / (scale * predicted)), shape (k,).
    """

    scale: float
    scale_low: float
    scale_high: float
    discrepancy: Discrepancy
    residuals_log: Floats


def fit(
    measured_us: Values,
    predicted_us: Values,
    *,
    relative_errors: Values | None = None,
    with_scale: bool = True,
    model_sha256s: Sequence[str] = (),
) -> Fit:
    """Fit one factor by the weighted mean of log(measured / predicted), and learn the discrepancy from what is left.

    ``relative_errors`` are standard errors of log(measured / predicted) known beforehand (both sides' sampling);
    the weights are 1 / (error^2 + prior^2), so that they matter only where networks differ in how well they are known.

    The discrepancy's variance is the sum of squared residuals over k - p degrees of freedom, p = 1 with a fitted scale,
    else 0 (residuals about 0, so that a common bias widens the intervals); where k - p is below ``LEAST_DOF``, the
    prior's variance counts for the missing ones. Raises :class:`~luts.errors.RequestError` for no network and for
    predictions or measurements that are not positive.
    """
    measured, predicted = np.asarray(measured_us, dtype=np.float64), np.asarray(predicted_us, dtype=np.float64)
    k = measured.size
    if k == 0 or measured.shape != predicted.shape:
        raise RequestError(f"a fit needs networks: {k} measured, {predicted.size} predicted")
    if not ((measured > 0).all() and (predicted > 0).all() and np.isfinite(measured / predicted).all()):
        raise RequestError("a fit needs positive measurements and predictions")
    log_ratios = np.log(measured / predicted)
    errors = np.zeros(k) if relative_errors is None else np.asarray(relative_errors, dtype=np.float64)
    weights = 1 / (errors**2 + PRIOR_RELATIVE_SD**2)
    weights /= weights.sum()
    log_scale = float(weights @ log_ratios) if with_scale else 0.0
    residuals = log_ratios - log_scale
    own_dof = k - (1 if with_scale else 0)
    prior_dof = max(0.0, LEAST_DOF - own_dof)
    dof = prior_dof + own_dof
    squares = float((_clipped(residuals) ** 2).sum())
    sd = max(math.sqrt((prior_dof * PRIOR_RELATIVE_SD**2 + squares) / dof), MIN_RELATIVE_SD)
    half = t_975(dof) * sd * math.sqrt(float((weights**2).sum())) if with_scale else 0.0
    return Fit(
        scale=math.exp(log_scale),
        scale_low=math.exp(log_scale - half),
        scale_high=math.exp(log_scale + half),
        discrepancy=Discrepancy(sd, dof, k, "networks", tuple(model_sha256s)),
        residuals_log=residuals,
    )


def _clipped(residuals: Floats) -> Floats:
    """Residuals limited to a multiple of their robust spread; too few to tell a spread stay as they are."""
    if residuals.size < 4:
        return residuals
    robust_sd = max(1.4826 * float(np.median(np.abs(residuals))), MIN_RELATIVE_SD)
    return np.clip(residuals, -CLIP_SD * robust_sd, CLIP_SD * robust_sd)


def applied(lut: Lut, setting: Setting, fitted: Fit, *, with_scale: bool) -> Lut:
    """The same table with what was learnt in the header of one setting; entries stay as they were measured."""
    calibration = None
    if with_scale:
        calibration = Calibration(
            scale=fitted.scale,
            scale_low=fitted.scale_low,
            scale_high=fitted.scale_high,
            networks=fitted.discrepancy.networks,
            model_sha256s=fitted.discrepancy.model_sha256s,
        )
    return with_setting_header(lut, replace(lut.setting_header(setting), calibration=calibration, discrepancy=fitted.discrepancy))


def with_setting_header(lut: Lut, header: SettingHeader) -> Lut:
    """The same table with the header of one setting replaced (look-ups are prepared afresh)."""
    settings = tuple(header if item.setting == header.setting else item for item in lut.header.settings)
    return Lut(replace(lut.header, settings=settings), lut.entries, lut.failed, lut.elp_nas)


def uncalibrated(lut: Lut, setting: Setting) -> Lut:
    """The same table as if nothing had been fitted on whole networks."""
    header = lut.setting_header(setting)
    return lut if header.calibration is None else with_setting_header(lut, replace(header, calibration=None))


def calibrate(lut: Lut, measured_path: Path | str, *, setting: Setting | None = None, with_scale: bool = True) -> tuple[Lut, Fit]:
    """Learn scale and discrepancy from a file of measured networks (:mod:`luts.measured`).

    Networks marked ``"fit": false`` are left out: they are kept for validation. What was fitted before is replaced, not
    compounded. Raises :class:`~luts.errors.LutError` and :class:`~op_models.errors.OpModelError`.
    """
    from luts import measured
    from luts.predict import predict
    from op_models import graph as graphs

    chosen = lut.setting() if setting is None else setting
    bare = uncalibrated(lut, chosen)
    table = bare.table(delegate=chosen.delegate, threads=chosen.threads, core_cluster=chosen.core_cluster)
    networks = [network for network in measured.load(measured_path).networks if network.fit is not False]
    if not networks:
        raise RequestError(f"{measured_path} marks no network for fitting")
    graphs_read = [graphs.read(network.model) for network in networks]
    predicted = [predict(graph, table).latency_us for graph in graphs_read]
    fitted = fit(
        [network.measured_us for network in networks],
        predicted,
        relative_errors=[_relative_error(network) for network in networks],
        with_scale=with_scale,
        model_sha256s=[graph.sha256 for graph in graphs_read],
    )
    return applied(bare, chosen, fitted, with_scale=with_scale), fitted


def _relative_error(network: MeasuredNetwork) -> float:
    if network.measured_us_low is None or network.measured_us_high is None:
        return 0.0
    return max(0.0, network.measured_us_high - network.measured_us_low) / 2 / Z_975 / network.measured_us


def _parser() -> argparse.ArgumentParser:
    import argparse

    from luts.command import add_setting_options

    parser = argparse.ArgumentParser(
        prog="python -m luts.calibrate",
        description="Fit one scale on a few measured networks, and learn how far networks lie from their sums.",
        epilog="exit status: 0 written, 2 not. Never validate on the networks given here.",
    )
    parser.add_argument("--lut", required=True, metavar="TABLE", help="the table to calibrate (it is not changed)")
    parser.add_argument("--measured", required=True, metavar="FILE", help="JSON or CSV of networks and their measured_us")
    parser.add_argument("-o", "--output", required=True, metavar="TABLE", help="the calibrated table to write")
    parser.add_argument("--no-scale", action="store_true", help="fit no scale: learn the discrepancy only")
    parser.add_argument("--json", action="store_true", help="print what was learnt as JSON")
    add_setting_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, guarded

    arguments = _parser().parse_args(argv)

    def work() -> int:
        from luts.storage import load, save

        lut = load(arguments.lut)
        setting = lut.setting(delegate=arguments.delegate, threads=arguments.threads, core_cluster=arguments.core_cluster)
        with_scale = not arguments.no_scale
        calibrated, fitted = calibrate(lut, arguments.measured, setting=setting, with_scale=with_scale)
        save(calibrated, arguments.output)
        if arguments.json:
            found = {
                "lut": str(arguments.output),
                "scale": fitted.scale if with_scale else None,
                "scale_low": fitted.scale_low if with_scale else None,
                "scale_high": fitted.scale_high if with_scale else None,
                "relative_sd": fitted.discrepancy.relative_sd,
                "networks": fitted.discrepancy.networks,
            }
            print(json.dumps(found, indent=1))
        else:
            print(arguments.output)
        told = "no scale, "
        if with_scale:
            told = f"scale {fitted.scale:.4f} ({fitted.scale_low:.4f} to {fitted.scale_high:.4f}), "
        networks = fitted.discrepancy.networks
        print(
            f"{told}discrepancy {100 * fitted.discrepancy.relative_sd:.2f} % from {networks} "
            f"network{'' if networks == 1 else 's'}",
            file=sys.stderr,
        )
        print(f"next: python -m luts.validate --lut {arguments.output}", file=sys.stderr)
        return DONE

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
