"""A table is made of runs that may be merged, and of no others; pooling hides no disagreement."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import luts
from luts import fields, runs, storage
from luts.build import RUNS_DISAGREE, build, main, pooled
from luts.errors import LutError, LutFileError, RequestError, UnlikeConditionsError
from luts.runs import read_run
from luts.schema import DeviceHeader, RunSource
from tests.luts import tables


def run(folder: Path, **changes: Any) -> runs.RunTable:
    return read_run(tables.write_run(folder, tables.run_document(folder.name, **changes)))


def conditions(**changes: Any) -> dict[str, Any]:
    return {"conditions": tables.run_document()["conditions"] | changes}


def test_one_run_becomes_a_table_with_its_provenance(tmp_path: Path) -> None:
    table = build([run(tmp_path / "a")])
    assert [(item.key, item.latency_us, item.run_ids) for item in table.entries] == [
        (tables.ADD, 2.5, ("a",)),
        (tables.CONV, 5.0, ("a",)),
    ]
    assert table.header.runs == (RunSource("a", "ef" * 32),)
    assert table.header.settings[0].floor is not None
    assert table.header.settings[0].floor.latency_us == 0.8
    assert table.header.settings[0].discrepancy.source == "prior"
    assert table.header.device.cpu == "a cpu"
    assert table.header.device.private_cache_bytes == 1 << 20
    assert dict(table.header.device.facts)["kernel"] == "Linux 6"


def test_runs_of_different_operations_are_joined(tmp_path: Path) -> None:
    document = tables.run_document("b")
    document["entries"] = [document["entries"][0] | {"context": "cold"}]
    table = build([run(tmp_path / "a"), read_run(tables.write_run(tmp_path / "b", document))])
    assert [(item.key, item.context) for item in table.entries] == [
        (tables.ADD, "cold"),
        (tables.ADD, "hot"),
        (tables.CONV, "hot"),
    ]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("runtime_version", conditions(runtime_version="2.4.0")),
        ("binary_sha256", conditions(binary_sha256="00" * 32)),
        ("clock", conditions(clock="wall")),
        ("statistic", conditions(statistic="median")),
        ("power", conditions(power={"meter": "sim", "simulated": True})),
        ("device cpu", {"device": {"cpu_model": "another cpu", "l2_bytes": 1 << 20}}),
        ("device private_cache_bytes", conditions(private_cache_bytes=1 << 21)),
    ],
)
def test_unlike_runs_are_refused_with_the_field_and_both_values(tmp_path: Path, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnlikeConditionsError) as raised:
        build([run(tmp_path / "a"), run(tmp_path / "b", **changes)])
    assert raised.value.field == field
    assert list(raised.value.values) == ["a", "b"]


def test_threads_are_a_dimension_and_no_obstacle(tmp_path: Path) -> None:
    table = build([run(tmp_path / "a"), run(tmp_path / "b", **conditions(threads=2))])
    assert [setting.threads for setting in table.settings] == [1, 2]
    assert len(table.entries) == 4
    assert table.table(threads=2).get(tables.ADD).run_ids == ("b",)


def test_facts_that_differ_are_left_out_of_the_common_header(tmp_path: Path) -> None:
    device = {"cpu_model": "a cpu", "l2_bytes": 1 << 20, "kernel": "Linux 7", "os_name": "x"}
    table = build([run(tmp_path / "a"), run(tmp_path / "b", device=device)])
    assert table.header.device == DeviceHeader(cpu="a cpu", private_cache_bytes=1 << 20)


def test_a_run_counts_once(tmp_path: Path) -> None:
    table = run(tmp_path / "a")
    with pytest.raises(RequestError, match="given twice"):
        build([table, table])
    with pytest.raises(RequestError, match="at least one run"):
        build([])


def test_the_better_measurement_weighs_more() -> None:
    found = pooled([tables.entry("k", 10.0, sd_us=0.1, run_id="a"), tables.entry("k", 10.4, sd_us=0.3, run_id="b")])
    assert found.latency_us == pytest.approx((10.0 * 9 + 10.4) / 10)
    assert found.run_ids == ("a", "b")
    assert found.rounds == 28
    assert RUNS_DISAGREE not in found.flags


@given(st.integers(0, 2**32 - 1))
def test_pooling_agreeing_runs_narrows_the_interval(seed: int) -> None:
    entries = [tables.entry("k", 10.0, sd_us=0.2, seed=seed + run) for run in range(4)]
    found = pooled(entries)
    assert found.latency_us_high - found.latency_us_low == pytest.approx(2 * 1.96 * 0.2 / 2, rel=0.01)
    # Replicates of independent runs average out as the interval says, up to the chance of 40 of them.
    assert np.std(found.latency_us_replicates, ddof=1) == pytest.approx(0.1, rel=0.6)


def test_runs_that_disagree_are_flagged_and_their_interval_reaches_both() -> None:
    found = pooled([tables.entry("k", 10.0, sd_us=0.05, seed=1), tables.entry("k", 12.0, sd_us=0.05, seed=2)])
    assert RUNS_DISAGREE in found.flags
    assert found.latency_us_low < 10.0
    assert found.latency_us_high > 12.0
    assert np.std(found.latency_us_replicates) > 0.5


def test_runs_that_agree_by_their_intervals_are_not_flagged_too_often() -> None:
    rng = np.random.default_rng(5)
    flagged = 0
    for trial in range(300):
        pair = [tables.entry("k", 10 + 0.1 * rng.standard_normal(), sd_us=0.1, seed=2 * trial + i) for i in (0, 1)]
        flagged += RUNS_DISAGREE in pooled(pair).flags
    assert flagged <= 10  # 1 % of 300, and chance


def test_a_failure_stands_unless_another_run_succeeded(tmp_path: Path) -> None:
    failed = [
        {"key": tables.ADD, "context": "hot", "reason": "died"},
        {"key": tables.ADD, "context": "cold", "reason": "died"},
        {"key": tables.CONV, "context": None, "reason": "cannot be lifted"},
        {"key": "CUSTOM", "context": None, "reason": "cannot be lifted"},
    ]
    document = tables.run_document("b", failed=failed, entries=[])
    table = build([run(tmp_path / "a"), read_run(tables.write_run(tmp_path / "b", document))])
    assert [(item.key, item.context) for item in table.failed] == [(tables.ADD, "cold"), ("CUSTOM", None)]


def test_replicates_of_unequal_runs_are_cut_to_the_shorter(tmp_path: Path) -> None:
    document = tables.run_document("b")
    document["entries"] = [document["entries"][0] | {"context": "cold", "latency_us_replicates": [1.0, 2.0, 3.0]}]
    table = build([run(tmp_path / "a"), read_run(tables.write_run(tmp_path / "b", document))])
    assert {len(item.latency_us_replicates) for item in table.entries} == {3}


def test_the_thesis_statistic_travels_along(tmp_path: Path) -> None:
    told = [{"name": "sep3@32", "n": 100, "runs": 98, "latency_us_mean_wall": 127.6, "latency_us_level": 114.1}]
    assert build([run(tmp_path / "a", elp_nas=told)]).elp_nas[0].latency_us_mean_wall == 127.6


@given(st.data())
def test_a_mutated_operation_table_is_read_or_refused_as_a_lut_error(data: st.DataObject) -> None:
    document = copy.deepcopy(tables.run_document())
    holder: Any = document
    while True:
        names = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        name = data.draw(st.sampled_from(names))
        if isinstance(holder[name], dict | list) and holder[name] and data.draw(st.booleans()):
            holder = holder[name]
            continue
        holder[name] = data.draw(st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({}))
        break
    try:
        table = build([runs._run_table(document, "r", Path("r"))])
    except (LutError, fields.FieldError):
        return
    storage.parse(json.loads(storage.dumps(table)), "t")


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}', '{"format": "operation-table", "version": 9}'])
def test_what_is_no_operation_table_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "operations.json"
    file.write_text(content)
    with pytest.raises(LutFileError):
        read_run(file)
    with pytest.raises(LutFileError, match=r"holds no derived/operations\.json"):
        read_run(tmp_path)


def test_the_command_writes_the_table_and_its_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tables.write_run(tmp_path / name)) for name in ("a", "b")]
    out, rows, parquet = (str(tmp_path / name) for name in ("t.json", "t.csv", "t.parquet"))
    assert main([*folders, "-o", out, "--csv", rows, "--parquet", parquet]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.splitlines()[-1].startswith("next: python -m luts.predict")
    table = luts.load(out)
    assert len(table.entries) == 2
    with Path(rows).open() as file:
        read = list(csv.DictReader(file))
    assert [row["key"] for row in read] == [tables.ADD, tables.CONV]
    assert [float(row["latency_us"]) for row in read] == [2.5, 5.0]
    import pandas

    frame = pandas.read_parquet(parquet)
    assert list(frame["key"]) == [tables.ADD, tables.CONV]
    assert list(frame["threads"]) == [1, 1]


def test_the_command_refuses_unlike_runs_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tables.write_run(tmp_path / "a")
    second = tables.write_run(tmp_path / "b", tables.run_document("b", **conditions(clock="wall")))
    assert main([str(first), str(second), "-o", str(tmp_path / "t.json")]) == 2
    said = capsys.readouterr()
    assert said.err == "error: the measurements differ in clock and cannot be merged: 'thread-cpu' in a, 'wall' in b\n"
    assert not (tmp_path / "t.json").exists()


def test_a_summary_can_be_had_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tables.write_run(tmp_path / "a")), "-o", str(tmp_path / "t.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 2


def test_energy_is_pooled_only_where_every_run_has_it() -> None:
    first = replace(tables.entry("k", 10.0, sd_us=0.1), energy_uj=4.0, power_simulated=True)
    second = replace(tables.entry("k", 10.0, sd_us=0.1, seed=1), energy_uj=6.0, power_simulated=False)
    found = pooled([first, second])
    assert found.energy_uj == pytest.approx(5.0)
    assert found.power_simulated is True
    assert pooled([first, replace(second, energy_uj=None)]).energy_uj is None


def slowed(folder: Path, reference_us: float, factor: float) -> runs.RunTable:
    """A run whose host was slower by ``factor``, which its reference tells."""
    document = tables.run_document(folder.name)
    for entry in document["entries"]:
        entry["reference_us"] = reference_us
        for name in ("latency_us", "latency_us_low", "latency_us_high"):
            entry[name] *= factor
        entry["latency_us_replicates"] = [value * factor for value in entry["latency_us_replicates"]]
    return read_run(tables.write_run(folder, document))


def test_entries_of_a_slow_spell_are_brought_to_the_hosts_best_speed(tmp_path: Path) -> None:
    fast, slow = slowed(tmp_path / "a", 500.0, 1.0), slowed(tmp_path / "b", 600.0, 1.2)
    alone = {item.key: item.latency_us for item in build([fast]).entries}
    table = build([fast, slow])
    assert {item.key: item.latency_us for item in table.entries} == pytest.approx(alone, rel=1e-4)
    assert all("host-slow" in item.flags for item in table.entries)
    assert all("host-slow" not in item.flags for item in build([slow]).entries)  # nothing faster is known of it


def test_a_file_that_is_no_table_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tables.write_run(tmp_path / "a", tables.run_document("a"))
    model = tmp_path / "my.tflite"
    model.write_bytes(b"precious")
    assert main([str(folder), "-o", str(model)]) == 2
    assert model.read_bytes() == b"precious"
    assert "not overwritten" in capsys.readouterr().err
    assert main([str(folder), "-o", str(tmp_path / "t.json")]) == 0
    assert main([str(folder), "-o", str(tmp_path / "t.json")]) == 0
