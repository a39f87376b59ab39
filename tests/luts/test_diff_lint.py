"""A diff tells real differences from noise, and the checker finds what is planted and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import luts
from luts import diff, lint, storage
from luts.errors import RequestError
from luts.schema import Entry, FailedEntry, Lut
from tests.luts import tables


def noisy(rng: np.random.Generator, n: int, ratio: dict[int, float] | None = None) -> list[Entry]:
    """Entries with 2 % noise about 100 us, those in ``ratio`` slower by that factor."""
    found = []
    for position in range(n):
        latency = 100.0 * (ratio or {}).get(position, 1.0) * (1 + 0.02 * rng.standard_normal())
        found.append(tables.entry(tables.conv_key(size=position + 1), latency, sd_us=2.0, seed=position))
    return found


@pytest.mark.parametrize("correction", ["holm", "bh"])
def test_real_differences_are_told_and_noise_is_not(correction: str) -> None:
    rng = np.random.default_rng(4)
    first = tables.lut(noisy(rng, 200))
    second = tables.lut(noisy(rng, 200, {3: 1.3, 50: 1.4, 90: 0.7}))
    found = diff.diff(first, second, correction=correction)
    verdicts = {item.key: item.verdict for item in found.differences if item.verdict != diff.SAME}
    assert verdicts[tables.conv_key(size=4)] == diff.SLOWER
    assert verdicts[tables.conv_key(size=51)] == diff.SLOWER
    assert verdicts[tables.conv_key(size=91)] == diff.FASTER
    assert len(verdicts) <= 4
    slower = next(item for item in found.differences if item.key == tables.conv_key(size=4))
    assert slower.ratio_low is not None
    assert slower.ratio_high is not None
    assert slower.ratio_low < 1.3 < slower.ratio_high


def test_a_table_is_the_same_as_itself() -> None:
    table = tables.lut(noisy(np.random.default_rng(0), 20))
    assert diff.diff(table, table).counts()[diff.SAME] == 20
    assert diff.diff(table, table).median_ratio == 1.0


def test_what_one_table_lacks_is_said() -> None:
    first, second = tables.lut([tables.entry(tables.ADD, 1.0)]), tables.lut([tables.entry(tables.CONV, 1.0)])
    assert [(item.key, item.verdict) for item in diff.diff(first, second).differences] == [
        (tables.ADD, diff.ONLY_A),
        (tables.CONV, diff.ONLY_B),
    ]


def test_a_difference_below_what_matters_is_the_same_however_certain() -> None:
    first, second = (tables.lut([tables.entry(tables.ADD, us, sd_us=1e-4)]) for us in (100.0, 105.0))
    assert diff.diff(first, second, at_least_frac=0.1).differences[0].verdict == diff.SAME
    assert diff.diff(first, second).differences[0].verdict == diff.SLOWER


def test_what_another_run_changes_everywhere_is_no_difference() -> None:
    rng = np.random.default_rng(8)

    def run(changed: dict[int, float]) -> Lut:
        return tables.lut(
            [
                tables.entry(
                    tables.conv_key(size=i + 1), 100 * changed.get(i, 1.0) * (1 + 0.03 * rng.standard_normal()), sd_us=0.01
                )
                for i in range(100)
            ]
        )

    found = diff.diff(run({}), run({7: 1.5}))
    assert [item.key for item in found.differences if item.verdict != diff.SAME] == [tables.conv_key(size=8)]


def test_a_negative_entry_has_no_ratio() -> None:
    first, second = tables.lut([tables.entry(tables.ADD, -1.0)]), tables.lut([tables.entry(tables.ADD, 1.0)])
    assert diff.diff(first, second).differences[0].verdict == diff.UNCLEAR


def test_unlike_conditions_are_listed() -> None:
    other = replace(tables.CONDITIONS, runtime_version="2.4.0")
    found = diff.diff(tables.lut([]), tables.lut([], conditions=other))
    assert found.unlike == (("conditions.runtime_version", "2.3.0", "2.4.0"),)
    assert found.median_ratio is None


def test_a_request_without_sense_is_refused() -> None:
    with pytest.raises(RequestError):
        diff.diff(tables.lut([]), tables.lut([]), correction="none")
    with pytest.raises(RequestError):
        diff.diff(tables.lut([]), tables.lut([]), alpha=2)


def test_the_diff_command_prints_the_real_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    luts.save(tables.lut([tables.entry(tables.ADD, 10.0, sd_us=0.1), tables.entry(tables.CONV, 5.0, sd_us=0.1)]), a)
    luts.save(tables.lut([tables.entry(tables.ADD, 12.0, sd_us=0.1), tables.entry(tables.CONV, 5.0, sd_us=0.1)]), b)
    assert diff.main([a, b]) == 0
    out = capsys.readouterr().out
    assert "slower" in out
    assert tables.ADD in out
    assert tables.CONV not in out
    assert diff.main([a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {
        "same": 1, "faster": 0, "slower": 1, "unclear": 0, "only in A": 0, "only in B": 0,
    }  # fmt: skip
    assert diff.main([a, str(tmp_path / "none")]) == 2


def rules(table: Lut, **options: object) -> list[tuple[str, str]]:
    return [(item.rule, item.key) for item in lint.lint(table, **options)]  # type: ignore[arg-type]


def test_a_clean_table_has_no_findings() -> None:
    entries = [tables.entry(tables.conv_key(kernel, channels, size), float(kernel**2 * channels * size**2), sd_us=0.1)
               for kernel in (1, 3, 5) for channels in (8, 16) for size in (8, 16)]  # fmt: skip
    assert rules(tables.lut(entries)) == []


@pytest.mark.parametrize(
    ("rule", "entries"),
    [
        ("negative", [tables.entry(tables.ADD, -5.0, sd_us=0.1)]),
        ("not-positive", [tables.entry(tables.ADD, -0.1, sd_us=0.5)]),
        ("wide-interval", [tables.entry(tables.ADD, 10.0, sd_us=2.0)]),
        ("outside-interval", [replace(tables.entry(tables.ADD, 10.0, sd_us=0.1), latency_us=11.0)]),
        ("flagged", [tables.entry(tables.ADD, 10.0, flags=("noisy",))]),
        ("cold-below-hot", [tables.entry(tables.ADD, 9.0, sd_us=0.1), tables.entry(tables.ADD, 8, "cold", sd_us=0.1)]),
        ("cold-below-hot", [tables.entry(tables.ADD, 9.0, sd_us=0.1), tables.entry(tables.ADD, 8.0, "far", sd_us=0.1)]),
        ("key-syntax", [tables.entry("conv3x3", 10.0)]),
        ("non-finite", [replace(tables.entry(tables.ADD, 10.0), latency_us=math.nan)]),
    ],
)  # fmt: skip
def test_each_fault_is_found_by_its_rule(rule: str, entries: list[Entry]) -> None:
    assert [found for found, _ in rules(tables.lut(entries))] == [rule]


@pytest.mark.parametrize(
    ("rule", "smaller", "larger"),
    [
        ("non-monotonic-kernel", tables.conv_key(kernel=3), tables.conv_key(kernel=5)),
        ("non-monotonic-channels", tables.conv_key(channels=8), tables.conv_key(channels=16)),
        ("non-monotonic-size", tables.conv_key(size=8), tables.conv_key(size=16)),
    ],
)
def test_a_larger_operation_that_is_surely_faster_is_found(rule: str, smaller: str, larger: str) -> None:
    surely = tables.lut([tables.entry(smaller, 10.0, sd_us=0.1), tables.entry(larger, 8.0, sd_us=0.1)])
    assert rules(surely) == [(rule, larger)]
    perhaps = tables.lut([tables.entry(smaller, 10.0, sd_us=0.4), tables.entry(larger, 9.9, sd_us=0.4)])
    assert rules(perhaps) == []


def test_a_flag_that_a_rule_repeats_is_not_told_twice() -> None:
    assert rules(tables.lut([tables.entry(tables.ADD, 10.0, sd_us=2.0, flags=("wide",))])) == [("wide-interval", tables.ADD)]


def test_operations_that_differ_in_more_than_one_kind_of_size_are_not_compared() -> None:
    entries = [tables.entry(tables.conv_key(3, 8, 8), 10.0), tables.entry(tables.conv_key(5, 8, 16), 5.0)]
    assert rules(tables.lut(entries)) == []


def test_missing_operations_are_errors_with_the_reason_and_the_nearest() -> None:
    table = replace(
        tables.lut([tables.entry(tables.ADD, 1.0)]),
        failed=(FailedEntry(tables.CONV, "hot", tables.SETTING, "no kernel", "r1"),),
    )
    found = lint.lint(table, wanted_keys=[tables.ADD, tables.CONV])
    assert [(item.rule, item.key) for item in found] == [("missing", tables.CONV)]
    assert "no kernel" in found[0].message


def test_the_lint_command_fails_on_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, network = str(tmp_path / "l.json"), str(tables.network(tmp_path / "n.tflite"))
    luts.save(tables.lut([tables.entry(tables.ADD, 10.0, sd_us=2.0)]), path)
    assert lint.main([path]) == 0
    assert "wide-interval" in capsys.readouterr().out
    assert lint.main([path, "--model", network, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["errors"], document["warnings"]) == (1, 1)
    assert lint.main([path, "--space", "no such space"]) == 2
    assert lint.main([str(tmp_path / "none.json")]) == 2


def test_a_search_space_must_be_covered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "l.json")
    luts.save(tables.lut([tables.entry(tables.ADD, 10.0)]), path)
    assert lint.main([path, "--space", "nas-bench-201", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert len(findings) > 10
    assert {item["rule"] for item in findings} == {"missing"}


def test_a_damaged_file_with_nan_is_a_finding_and_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.json"
    content = storage.dumps(tables.lut([tables.entry(tables.ADD, 10.0)]))
    path.write_text(content.replace('"latency_us":10.0,', '"latency_us":NaN,'))
    assert lint.main([str(path)]) == 1
    assert "non-finite" in capsys.readouterr().out
    with pytest.raises(luts.LutError):
        luts.load(path)
