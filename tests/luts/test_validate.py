"""A validation scores only what nothing was fitted on, beside baselines that got the same chance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import luts
from luts import baselines, calibrate
from luts.errors import RequestError
from luts.schema import DeviceHeader
from luts.validate import NetworkResult, compare, main, summary_text
from tests.luts import tables


def results(measured: list[float], predicted: list[float], fit: list[bool], half: float = 0.1) -> list[NetworkResult]:
    return [
        NetworkResult(f"n{i}", None, m, p, p * (1 - half), p * (1 + half), f)
        for i, (m, p, f) in enumerate(zip(measured, predicted, fit, strict=True))
    ]


def scores(validation: Any) -> dict[str, Any]:
    return {row.predictor: row.score for row in validation.rows}


def test_networks_that_constants_were_fitted_on_are_not_scored() -> None:
    found = compare(results([100, 200, 400], [1000, 220, 440], [True, False, False]))
    assert found.rows[0].score.networks == 2
    assert found.rows[0].score.mape_frac == pytest.approx(0.1)


def test_every_predictor_is_scored_on_the_same_networks() -> None:
    n = 12
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (n, 3)).astype(float)
    truth = counts @ [10.0, 20.0, 30.0] + 50
    fit = [i < 4 for i in range(n)]
    found = compare(
        results(truth.tolist(), (0.9 * truth).tolist(), fit),
        macs=(truth * 1000).astype(int).tolist(),
        paper_counts=counts,
        paper_mean_us=[20.0, 40.0, 60.0],
        paper_ours_us=[10.0, 20.0, 30.0],
        retest_us=(1.02 * truth).tolist(),
    )
    by_name = scores(found)
    assert {score.networks for score in by_name.values()} == {8}
    assert by_name["table, nothing fitted"].bias_frac == pytest.approx(-0.1)
    assert by_name["table, one scale"].mape_frac == pytest.approx(0, abs=1e-12)
    assert by_name["thesis, our statistic"].mape_frac == pytest.approx(0, abs=1e-12)
    assert by_name["thesis, as published"].mape_frac > 0.05
    assert by_name["MACs x constant"].mape_frac < 1e-5
    assert by_name["retest of the same networks"].mape_frac == pytest.approx(0.02)
    assert [row.fitted for row in found.rows] == [0, 4, 4, 4, 4, 4, 0]
    assert "retest of the same networks" in summary_text(found)


def test_a_learnt_discrepancy_replaces_the_one_in_the_intervals_and_keeps_their_sampling_part() -> None:
    rng = np.random.default_rng(2)
    n = 400
    truth = rng.uniform(100, 900, n)
    predicted = truth * np.exp(0.02 * rng.standard_normal(n))
    fit = [i < 20 for i in range(n)]
    half = float(np.expm1(0.5))  # absurdly wide: what the prior said
    networks = results(truth.tolist(), predicted.tolist(), fit, half)
    by_name = scores(compare(networks, discrepancy_log=math.log(1 + half)))
    assert by_name["table, nothing fitted"].interval_coverage_frac == 1.0
    for name in ("table, nothing fitted but the interval", "table, one scale"):
        assert 0.9 <= by_name[name].interval_coverage_frac <= 0.99
        assert by_name[name].median_half_width_frac == pytest.approx(0.04, rel=0.4)
    wider = scores(compare(networks, discrepancy_log=0.0))["table, one scale"]
    assert wider.median_half_width_frac > 0.4  # all of the width was sampling, and stays


def test_without_networks_to_fit_on_no_fitted_predictor_appears() -> None:
    found = compare(results([100, 200], [100, 200], [False, False]), macs=[1, 2], retest_us=[float("nan")] * 2)
    assert [row.predictor for row in found.rows] == ["table, nothing fitted"]


def test_a_validation_with_nothing_left_to_score_is_refused() -> None:
    with pytest.raises(RequestError, match="none is left to score"):
        compare(results([100], [100], [True]))


def test_the_json_form_holds_each_network_and_then_the_summary() -> None:
    document = compare(results([100, 200], [110, 200], [False, False])).as_json()
    json.dumps(document, allow_nan=False)
    assert document["networks"][0]["measured_us"] == 100
    assert document["networks"][0]["predicted_us"] == 110
    assert document["summary"]["mape_frac"] == pytest.approx(0.05)
    assert document["summary"]["interval_coverage_frac"] == 1.0


def test_a_constant_score_has_a_null_for_its_correlation() -> None:
    assert compare(results([100, 100], [110, 110], [False, False])).as_json()["summary"]["kendall"] is None


@given(st.integers(2, 50), st.integers(0, 100))
def test_the_networks_to_fit_on_are_drawn_by_the_seed(n: int, seed: int) -> None:
    k = max(1, n // 3)
    mask = baselines.fit_mask(n, k, seed=seed)
    assert mask.sum() == k
    np.testing.assert_array_equal(mask, baselines.fit_mask(n, k, seed=seed))


@pytest.mark.parametrize("k", [0, 3])
def test_a_fit_on_none_or_on_all_networks_is_refused(k: int) -> None:
    with pytest.raises(RequestError):
        baselines.fit_mask(3, k, seed=0)


def test_the_constant_bias_of_the_thesis_is_the_mean_of_what_its_table_lacks() -> None:
    fit = np.array([True, True, False])
    found = baselines.thesis([[1], [2], [3]], [10.0], [110.0, 140.0, 0.0], fit)
    np.testing.assert_allclose(found, [10 + 110, 20 + 110, 30 + 110])


def test_baselines_refuse_arrays_that_do_not_match() -> None:
    mask = np.array([True, False])
    with pytest.raises(RequestError):
        baselines.proportional([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], mask)
    with pytest.raises(RequestError):
        baselines.proportional([0.0, 2.0], [1.0, 2.0], mask)
    with pytest.raises(RequestError):
        baselines.with_constant_bias([1.0, 2.0], [1.0, 2.0], ~(mask | ~mask))
    with pytest.raises(RequestError):
        baselines.thesis_sums([[1.0, 2.0]], [1.0])


def prepared(folder: Path, n: int = 8) -> tuple[str, str]:
    table = tables.lut([tables.entry(tables.ADD, 2.0), tables.entry(tables.CONV, 5.0)], device=DeviceHeader())
    luts.save(table, folder / "l.json")
    networks = []
    for count in range(1, n + 1):
        tables.network(folder / f"n{count}.tflite", count)
        networks.append(
            {
                "model": f"n{count}.tflite",
                "measured_us": 1.05 * (2 + 5 * count),
                "retest_us": 1.06 * (2 + 5 * count),
                "paper_counts": {"conv": count},
            }
        )
    document = {"networks": networks, "paper_mean_us": {"conv": 6.0}, "paper_ours_us": {"conv": 5.0}}
    (folder / "m.json").write_text(json.dumps(document))
    return str(folder / "l.json"), str(folder / "m.json")


def test_the_command_prints_measured_predicted_and_all_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path)
    assert main(["--lut", table, "--measured", measured, "--fit", "3"]) == 0
    said = capsys.readouterr()
    for predictor in (
        "table, nothing fitted",
        "table, one scale (fitted on 3)",
        "thesis, as published (fitted on 3)",
        "thesis, our statistic (fitted on 3)",
        "MACs x constant (fitted on 3)",
        "retest of the same networks",
    ):
        assert predictor in said.out
    assert said.err.splitlines()[-1].startswith("next: python -m luts.calibrate")
    assert main(["--lut", table, "--measured", measured, "--fit", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["networks"]) == 8
    assert sum(item["fit"] for item in document["networks"]) == 3
    assert document["summary"]["mape_frac"] == pytest.approx(1 - 1 / 1.05, abs=1e-5)


def test_what_the_table_was_calibrated_on_is_never_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path)
    (tmp_path / "few.json").write_text(json.dumps(json.loads(Path(measured).read_text())["networks"][:2]))
    calibrated = str(tmp_path / "c.json")
    assert calibrate.main(["--lut", table, "--measured", str(tmp_path / "few.json"), "-o", calibrated]) == 0
    capsys.readouterr()
    assert main(["--lut", calibrated, "--measured", measured, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["fit"] for item in document["networks"]] == [True] * 2 + [False] * 6
    assert document["predictors"][0]["predictor"] == "table, calibrated"
    assert document["summary"]["networks"] == 6
    assert document["notes"] == ["2 networks were used to calibrate the table and are not scored"]


def test_a_validation_can_be_calibrated_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path)
    assert main(["--lut", table, "--measured", measured, "--fit", "3", "--json"]) == 0
    (tmp_path / "v.json").write_text(capsys.readouterr().out)
    calibrated = tmp_path / "c.json"
    assert calibrate.main(["--lut", table, "--measured", str(tmp_path / "v.json"), "-o", str(calibrated)]) == 0
    calibration = luts.load(calibrated).header.settings[0].calibration
    assert calibration is not None
    assert calibration.networks == 3  # those marked to be fitted on, not those that were scored


def test_the_command_refuses_bad_requests_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, measured = prepared(tmp_path, 2)
    assert main(["--lut", table, "--measured", str(tmp_path / "none.json")]) == 2
    assert main(["--lut", table, "--measured", measured, "--seed", "-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
