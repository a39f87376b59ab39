"""Networks are measured twice under the table's conditions, and a validation that was measured can be read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import luts
from luts import measured, validate
from luts.schema import DeviceHeader, Setting
from tests.luts import tables

SETTING = Setting("none", 1, "cpu0")


def test_a_named_network_is_measured_twice_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [tables.entry(key, 1.0, setting=SETTING) for key in (tables.ADD, tables.CONV)]
    luts.save(tables.lut(entries, settings=[SETTING], device=DeviceHeader()), tmp_path / "t.lut.json")
    network = tables.network(tmp_path / "n.tflite")
    arguments = ["--lut", str(tmp_path / "t.lut.json"), "--model", str(network), "--rounds", "3", "--json"]
    assert validate.main(arguments) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert [Path(item["model"]).name for item in document["networks"]] == ["n.tflite"]
    assert document["networks"][0]["measured_us"] > 0
    assert [row["predictor"] for row in document["predictors"]] == ["table, nothing fitted", "retest of the same networks"]
    kept = measured.load(tmp_path / "t.validation-1" / "networks.json").networks
    assert [item.fit for item in kept] == [None]  # one network is too few to spare any for fitting
    assert kept[0].retest_us is not None
    again = ["--lut", str(tmp_path / "t.lut.json"), "--measured", str(tmp_path / "t.validation-1" / "networks.json")]
    assert validate.main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"] == document["networks"]


def test_what_cannot_be_predicted_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    luts.save(tables.lut([tables.entry(tables.ADD, 1.0)]), tmp_path / "t.lut.json")
    network = tables.network(tmp_path / "n.tflite")
    assert validate.main(["--lut", str(tmp_path / "t.lut.json"), "--model", str(network)]) == 2
    assert "error: no measurement of CONV_2D" in capsys.readouterr().err
    assert not (tmp_path / "t.validation-1").exists()


def test_too_few_rounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    luts.save(tables.lut([tables.entry(tables.ADD, 1.0)]), tmp_path / "t.lut.json")
    assert validate.main(["--lut", str(tmp_path / "t.lut.json"), "--rounds", "1"]) == 2
    assert capsys.readouterr().err == "error: --rounds must be between 3 and 1000\n"
