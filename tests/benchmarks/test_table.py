"""README's figures are those of the figures file, and a file that is wrong changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.table import BEGIN, END, ROOT, FiguresError, filled, main, markdown, read

ACCURACY: dict[str, Any] = {
    "networks": "toy networks",
    "method": "table",
    "count": 3,
    "seed": 7,
    "mape_pct": 1.25,
    "bias_pct": 0.5,
    "worst_pct": 4.0,
    "within_5_pct": 100.0,
    "within_10_pct": 100.0,
    "kendall": 0.987,
    "covered_pct": None,
    "half_width_pct": None,
    "goal": "MAPE <= 1 %",
    "reached": False,
}
FIGURES: dict[str, Any] = {
    "format": "figures",
    "version": 1,
    "date": "2026-11-23",
    "device": "a toy computer",
    "commit": None,
    "accuracy": [ACCURACY, ACCURACY | {"method": "MACs x constant", "goal": None, "reached": None}],
    "speed": [{"what": "predict", "value": 0.21, "unit": "s", "goal": "<= 0.3 s", "reached": True}],
}


def figures_file(directory: Path, content: dict[str, Any]) -> Path:
    path = directory / "figures.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_readme_holds_what_the_figures_say() -> None:
    assert main(["--check"]) == 0


def test_a_missed_goal_is_shown_and_a_baseline_has_none(tmp_path: Path) -> None:
    missed, baseline = [
        line for line in markdown(read(figures_file(tmp_path, FIGURES))).splitlines() if line.startswith("| toy networks")
    ]
    assert "| 1.25 | +0.50 |" in missed
    assert missed.endswith("| MAPE <= 1 % | **missed** |")
    assert baseline.endswith("| – |  |")


def test_filling_twice_changes_nothing_more(tmp_path: Path) -> None:
    figures, readme = figures_file(tmp_path, FIGURES), tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    arguments = ["--figures", str(figures), "--readme", str(readme)]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    first = readme.read_text(encoding="utf-8")
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "old" not in first
    assert main([*arguments, "--check"]) == 0
    assert main(arguments) == 0
    assert readme.read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version"),
        ({"accuracy": [ACCURACY | {"mape_pct": "1.2"}]}, "accuracy.0.mape_pct"),
        ({"accuracy": [ACCURACY | {"typo": 1}]}, "accuracy.0.typo"),
        ({"speed": [{"what": "predict"}]}, "speed.0.value"),
    ],
)
def test_wrong_figures_are_named_and_readme_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], named: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nold\n{END}\n", encoding="utf-8")
    assert main(["--figures", str(figures_file(tmp_path, FIGURES | change)), "--readme", str(readme)]) == 2
    assert named in capsys.readouterr().err
    assert "old" in readme.read_text(encoding="utf-8")


@given(st.binary(max_size=60))
def test_any_bytes_are_figures_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with pytest.raises(FiguresError) as raised:
        read(path)
    assert raised.value.path == path


@pytest.mark.parametrize("readme", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_refused(readme: str) -> None:
    with pytest.raises(FiguresError, match="once each"):
        filled(readme, "text", ROOT / "README.md")
