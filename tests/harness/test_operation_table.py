from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import estimate, operation_table, rundir, runner
from harness import plan as plans
from harness.errors import CorruptRunError
from harness.jobs import Job
from harness.raw import RawRows
from harness.runner import Settings
from op_models.artifact import ArtifactCache
from tests.harness.fake_bench import FIXED_US, INVOKES, KEYS, FakeBench, plan_text, true_cost_us
from tests.harness.scripted_run import MANIFEST, PLAN_TEXT

FIELDS = {
    "key", "context", "n_values", "latency_us", "latency_us_low", "latency_us_high", "latency_us_replicates", "fixed_us",
    "reference_us",
    "rounds", "invocations", "flags", "method",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


def measured(path: Path, cache: ArtifactCache, bench: FakeBench, text: str) -> dict[str, Any]:
    runner.run(plans.parse(text), text, path, Settings(cache=cache, bench=bench))
    found: dict[str, Any] = json.loads((path / "derived" / "operations.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: ArtifactCache) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    text = plan_text(contexts='["hot", "cold"]', extra="elp_nas = true", rounds_min=8, rounds_max=8, block_models=100)
    measured(path, cache, FakeBench(), text)
    return path


def table_of(run: Path) -> dict[str, Any]:
    return operation_table.compute(rundir.read_run(run))


def test_the_table_is_the_same_each_time_it_is_computed(run: Path) -> None:
    for name, data in operation_table.files(table_of(run)).items():
        assert (run / "derived" / name).read_bytes() == data


def test_every_entry_says_what_it_is_of_and_how_sure_it_is(run: Path) -> None:
    table = table_of(run)
    assert (table["format"], table["version"]) == ("operation-table", 1)
    entries = table["entries"]
    jobs = [Job.model_validate(dict(job)) for job in rundir.read_run(run).jobs]
    expected = sorted({(job.key, job.context) for job in jobs if job.key is not None})
    assert {context for _, context in expected} == {"hot", "cold"}
    assert [(entry["key"], entry["context"]) for entry in entries] == expected
    for entry in entries:
        assert set(entry) == FIELDS
        assert len(entry["latency_us_replicates"]) == estimate.REPLICATES
        assert entry["latency_us_low"] <= entry["latency_us"] <= entry["latency_us_high"]
        assert entry["rounds"] == 8
        # Outside the hot context the line starts at the empty model.
        assert (entry["n_values"][0] == 0) == (entry["context"] == "cold")
        assert entry["n_values"] == sorted(set(entry["n_values"]))
        op_models = 2 if entry["context"] == "hot" else 1
        assert entry["invocations"] == 8 * INVOKES * op_models  # the warm-up does not count


def test_costs_are_those_of_the_bench(run: Path) -> None:
    truth = {job["key"]: true_cost_us(Job.model_validate(dict(job))) for job in rundir.read_run(run).jobs}
    for entry in table_of(run)["entries"]:
        assert entry["latency_us"] == pytest.approx(truth[entry["key"]], rel=0.03)
        assert entry["fixed_us"] == pytest.approx(FIXED_US, rel=0.2)


def test_the_floor_is_the_empty_model_and_the_reference_stands_beside_it(run: Path) -> None:
    table = table_of(run)
    assert table["floor_us"] == pytest.approx(FIXED_US, rel=0.02)
    (block,) = table["blocks"].values()
    assert block["reference"]["rounds"] == 8
    assert table["reference_us"] == block["reference"]["level_us"]


def test_conditions_name_whatever_tables_may_not_mix(run: Path) -> None:
    conditions = table_of(run)["conditions"]
    assert conditions["runtime"] == "litert"
    assert (conditions["delegate"], conditions["threads"], conditions["clock"]) == ("xnnpack", 1, "thread-cpu")
    assert conditions["private_cache_bytes"] == 1 << 20
    assert table_of(run)["device"]["cpu_model"] == "a cpu"


def test_the_statistic_of_elp_nas_is_the_mean_of_all_wall_clock_runs(run: Path) -> None:
    read = rundir.read_run(run)
    rounds = [rows for _, rows in read.rounds()]
    jobs = [Job.model_validate(dict(job)) for job in read.jobs]
    published = {(item["name"], item["n"]): item for item in table_of(run)["elp_nas"]}
    assert len(published) == 24
    for place, job in enumerate(jobs):
        if job.role == "elp-nas":
            item = published[job.name, job.copies]
            all_ns = [ns for rows in rounds for ns in rows["wall_ns"][(rows["job"] == place) & (rows["invoke"] > 0)].tolist()]
            assert item["runs"] == len(all_ns)
            assert item["latency_us_mean_wall"] == pytest.approx(np.mean(all_ns) / 1e3 / job.copies)
            assert item["latency_us_mean_wall"] >= item["latency_us_level"]


def test_the_csv_holds_the_same_numbers(run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((run / "derived" / "operations.csv").read_text())))
    for row, entry in zip(rows, table_of(run)["entries"], strict=True):
        assert (row["key"], row["context"]) == (entry["key"], entry["context"])
        assert float(row["latency_us"]) == entry["latency_us"]
        assert [int(n) for n in row["n_values"].split()] == entry["n_values"]


class Scaled(FakeBench):
    """Without noise, but for a factor on all models of a round, and one on op models of some keys."""

    def __init__(self, factors: Sequence[float], own: dict[str, Sequence[float]] | None = None) -> None:
        super().__init__(noise_frac=0.0)
        self.factors, self.own = factors, own or {}

    def _round(self, block: Sequence[Job], live: Sequence[int]) -> RawRows:
        found = super()._round(block, live)
        scale = np.full(len(block), self.factors[self.rounds % len(self.factors)])
        for place, job in enumerate(block):
            scale[place] *= self.own.get(job.key or "", [1.0])[self.rounds % len(self.own.get(job.key or "", [1.0]))]
        for clock in ("cpu_ns", "wall_ns"):
            found[clock] = (found[clock] * scale[found["job"]]).astype(np.uint64)
        return found


TOGETHER = plan_text(rounds_min=16, rounds_max=16, block_models=20)


def test_what_all_models_of_a_round_share_is_in_all_replicates_alike(tmp_path: Path, cache: ArtifactCache) -> None:
    factors = np.random.default_rng(4).uniform(1, 1.5, 16).tolist()
    first, second = measured(tmp_path / "run", cache, Scaled(factors), TOGETHER)["entries"]
    ratio = np.array(first["latency_us_replicates"]) / np.array(second["latency_us_replicates"])
    assert np.ptp(ratio) < 1e-3 * ratio.mean()
    assert np.ptp(first["latency_us_replicates"]) > 0.01 * first["latency_us"]


def test_a_wide_interval_and_an_unsteady_host_are_flagged(tmp_path: Path, cache: ArtifactCache) -> None:
    rng = np.random.default_rng(4)
    quiet = measured(tmp_path / "quiet", cache, Scaled([1.0]), TOGETHER)
    assert [entry["flags"] for entry in quiet["entries"]] == [[], []]
    wide = measured(tmp_path / "wide", cache, Scaled([1.0], {KEYS[0]: rng.uniform(1, 3, 16).tolist()}), TOGETHER)
    assert {entry["key"]: entry["flags"] for entry in wide["entries"]} == {KEYS[0]: ["wide"], KEYS[1]: []}
    unsteady = measured(tmp_path / "unsteady", cache, Scaled([1.0, 1.0, 1.0, 1.3]), TOGETHER)
    assert all("host-unsteady" not in entry["flags"] for entry in unsteady["entries"])  # a quarter of the rounds is no quartile
    unsteady = measured(tmp_path / "unsteadier", cache, Scaled([1.0, 1.2, 1.4]), TOGETHER)
    assert all("host-unsteady" in entry["flags"] for entry in unsteady["entries"])


def test_a_clock_that_sees_nothing_pass_gives_flagged_entries_and_valid_json(tmp_path: Path, cache: ArtifactCache) -> None:
    table = measured(tmp_path / "run", cache, Scaled([0.0]), TOGETHER)
    assert [entry["flags"] for entry in table["entries"]] == [["not-positive"], ["not-positive"]]


def test_a_live_run_has_a_table_of_what_is_there(tmp_path: Path, cache: ArtifactCache) -> None:
    seen: list[int] = []

    def look(number: int) -> None:
        seen.append(len(table_of(tmp_path / "run")["entries"]))

    measured(tmp_path / "run", cache, FakeBench(before_round=look), plan_text(rounds_min=3, rounds_max=3))
    assert seen == [0, 1, 1, 1, 2, 2]


def test_a_run_whose_jobs_are_of_another_kind_is_told(tmp_path: Path) -> None:
    with (
        rundir.create(tmp_path / "run", plan_text=PLAN_TEXT, manifest=MANIFEST, jobs=[{"job_id": "a", "colour": "red"}]),
        pytest.raises(CorruptRunError, match="not jobs"),
    ):
        table_of(tmp_path / "run")
