"""A scale is found where there is one, and the learnt discrepancy makes intervals that are true for new networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import luts
from luts.calibrate import fit, main
from luts.errors import LutFileError, RequestError
from luts.intervals import discrepancy_half_width
from luts.measured import load, parse, save
from luts.schema import PRIOR_RELATIVE_SD, Calibration, DeviceHeader
from tests.luts import tables


@given(st.floats(0.2, 5), st.integers(1, 20))
def test_an_exact_factor_is_found(scale: float, k: int) -> None:
    predicted = np.linspace(100, 900, k)
    found = fit(scale * predicted, predicted)
    assert found.scale == pytest.approx(scale)
    assert found.scale_low < found.scale < found.scale_high
    np.testing.assert_allclose(found.residuals_log, 0, atol=1e-12)


def test_better_known_networks_weigh_more() -> None:
    found = fit([100.0, 130.0], [100.0, 100.0], relative_errors=[0.0, 1.0])
    assert found.scale == pytest.approx(1.0, abs=0.005)


def test_without_a_scale_a_common_bias_widens_the_intervals() -> None:
    predicted = np.full(20, 100.0)
    biased = fit(1.10 * predicted, predicted, with_scale=False)
    assert biased.scale == 1.0
    assert biased.discrepancy.relative_sd == pytest.approx(math.log(1.1), rel=0.1)
    assert fit(1.10 * predicted, predicted).discrepancy.relative_sd < 0.01


@pytest.mark.parametrize("true_sd", [0.01, 0.03, 0.06])
@pytest.mark.parametrize("k", [5, 10])
@pytest.mark.parametrize("with_scale", [True, False])
def test_the_learnt_interval_covers_new_networks(true_sd: float, k: int, with_scale: bool) -> None:
    rng = np.random.default_rng(k)
    inside = []
    for _ in range(1500):
        predicted = rng.uniform(100, 1000, k + 1)
        measured = predicted * np.exp((0.1 if with_scale else 0) + true_sd * rng.standard_normal(k + 1))
        found = fit(measured[:k], predicted[:k], with_scale=with_scale)
        calibration = Calibration(found.scale, 1, 1, k) if with_scale else None
        half = discrepancy_half_width(found.discrepancy, calibration)
        inside.append(abs(math.log(measured[k] / predicted[k] / found.scale)) <= half)
    assert 0.90 <= np.mean(inside) <= 0.97


def test_one_broken_measurement_does_not_set_every_interval() -> None:
    rng = np.random.default_rng(1)
    predicted = np.full(12, 100.0)
    measured = predicted * np.exp(0.01 * rng.standard_normal(12))
    clean = fit(measured, predicted, with_scale=False).discrepancy.relative_sd
    measured[3] = 400.0
    broken = fit(measured, predicted, with_scale=False).discrepancy.relative_sd
    assert clean < broken < 3 * clean


def test_few_networks_leave_the_prior_its_weight() -> None:
    assert fit([100.0], [90.0]).discrepancy.relative_sd == pytest.approx(PRIOR_RELATIVE_SD)


@pytest.mark.parametrize(("measured", "predicted"), [([], []), ([1.0], [0.0]), ([-1.0], [1.0]), ([1.0], [1.0, 2.0])])
def test_what_cannot_be_fitted_is_refused(measured: list[float], predicted: list[float]) -> None:
    with pytest.raises(RequestError):
        fit(measured, predicted)


def prepared(folder: Path, factor: float = 1.1) -> tuple[str, str]:
    """A table, and measurements of three networks that cost ``factor`` times their prediction."""
    table = tables.lut([tables.entry(tables.ADD, 2.0), tables.entry(tables.CONV, 5.0)], device=DeviceHeader())
    luts.save(table, folder / "l.json")
    networks = []
    for n in (1, 2, 3):
        tables.network(folder / f"n{n}.tflite", n)
        networks.append({"model": f"n{n}.tflite", "measured_us": factor * (2 + 5 * n)})
    (folder / "m.json").write_text(json.dumps(networks))
    return str(folder / "l.json"), str(folder / "m.json")


def test_the_command_writes_a_calibrated_table_and_leaves_the_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path)
    before = Path(table).read_bytes()
    out = str(tmp_path / "c.json")
    assert main(["--lut", table, "--measured", measured, "-o", out]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert Path(table).read_bytes() == before
    calibrated = luts.load(out)
    calibration = calibrated.header.settings[0].calibration
    assert calibration is not None
    assert calibration.scale == pytest.approx(1.1)
    assert len(calibration.model_sha256s) == 3
    assert calibrated.cost(tmp_path / "n1.tflite").latency_us == pytest.approx(7.7)
    assert calibrated.entries == luts.load(table).entries


def test_calibrating_twice_replaces_the_scale(tmp_path: Path) -> None:
    table, measured = prepared(tmp_path)
    for _ in range(2):
        assert main(["--lut", table, "--measured", measured, "-o", table]) == 0
    calibration = luts.load(table).header.settings[0].calibration
    assert calibration is not None
    assert calibration.scale == pytest.approx(1.1)


def test_only_the_discrepancy_can_be_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path)
    assert main(["--lut", table, "--measured", measured, "-o", table, "--no-scale", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scale"] is None
    header = luts.load(table).header.settings[0]
    assert header.calibration is None
    assert header.discrepancy.source == "networks"
    assert header.discrepancy.relative_sd > PRIOR_RELATIVE_SD


def test_measurements_are_read_from_csv_too(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("model,measured_us,fit,macs\nn.tflite,12.5,true,1000\nb.tflite,13,,\n")
    found = load(tmp_path / "m.csv").networks
    assert [(item.model, item.measured_us, item.fit, item.macs) for item in found] == [
        ("n.tflite", 12.5, True, 1000),
        ("b.tflite", 13.0, None, None),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model,latency\na,1\n", "has no column 'measured_us'"),
        ("model,measured_us\na,fast\n", "line 2.measured_us: expected a number, found 'fast'"),
        ("model,measured_us\na,-1\n", "line 2.measured_us: expected a number above 0"),
        ("model,measured_us\na,nan\n", "expected a finite number"),
        ("model,measured_us\na,1,2\n", "more cells"),
        ("model,measured_us\n", "holds no network"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(LutFileError, match=told):
        load(tmp_path / "m.csv")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["networks", "model", "measured_us", "version", "fit", "paper_counts"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_is_measurements_or_a_lut_file_error(document: object) -> None:
    try:
        parse(document, "m.json")
    except LutFileError:
        return


def test_measurements_survive_the_disk(tmp_path: Path) -> None:
    _, path = prepared(tmp_path)
    first = load(path)
    save(first, tmp_path / "again.json")
    assert load(tmp_path / "again.json").networks == first.networks
