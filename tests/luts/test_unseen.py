"""Drawn networks are unseen, covered and counted as the thesis counts; measured runs and errors find their way in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import StorageError
from luts import measured, unseen
from luts.command import guarded
from luts.errors import LutFileError, RequestError
from luts.measured import MeasuredNetwork, Measurements
from luts.schema import ElpNasOperation, Lut
from op_models import graph as graphs
from op_models.artifact import default_cache
from op_models.elp_nas import OPERATIONS
from op_models.spaces.enas import Cell, EnasGenotype, EnasMicro
from op_models.spaces.registry import SPACES
from tests.luts import tables

SEP3, SEP5, AVG3, MAX3, IDENTITY = range(5)


def covering_table(space: str = "nas-bench-201") -> Lut:
    return tables.lut([tables.entry(key, 5.0) for key in sorted(SPACES[space].operation_keys())])


def cell(*operations: int) -> Cell:
    """Five blocks that all read the layer's inputs."""
    pairs = list(zip(operations[::2], operations[1::2], strict=True))
    return tuple((0, first, 1, second) for first, second in pairs)


def test_drawn_networks_are_covered_different_and_decided_by_the_seed(tmp_path: Path) -> None:
    table = covering_table().table()
    first = unseen.draw(table, tmp_path / "a", count=4, seed=1, space="nas-bench-201")
    again = unseen.draw(table, tmp_path / "b", count=4, seed=1, space="nas-bench-201")
    other = unseen.draw(table, tmp_path / "c", count=4, seed=2, space="nas-bench-201")
    contents = [[item.path.read_bytes() for item in drawn] for drawn in (first, again, other)]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert len(set(contents[0])) == 4
    for item in first:
        assert all(group.spec.key in table for group in graphs.read(item.path).groups)


def test_a_table_that_covers_nothing_of_a_space_is_told(tmp_path: Path) -> None:
    table = tables.lut([tables.entry(tables.ADD, 1.0)]).table()
    with pytest.raises(RequestError, match="the table covers 0 of"):
        unseen.draw(table, tmp_path, count=1, seed=0, space="nas-bench-201")
    with pytest.raises(RequestError, match="no search space named 'mars'"):
        unseen.draw(table, tmp_path, count=1, seed=0, space="mars")
    with pytest.raises(RequestError, match="cannot be drawn"):
        unseen.draw(table, tmp_path, count=0, seed=0)


def test_the_thesis_counts_separable_convolutions_twice_and_identity_never() -> None:
    genotype = EnasGenotype(
        cell(SEP3, SEP5, AVG3, MAX3, IDENTITY, IDENTITY, IDENTITY, IDENTITY, IDENTITY, IDENTITY),
        cell(SEP5, SEP5, MAX3, IDENTITY, IDENTITY, IDENTITY, IDENTITY, IDENTITY, IDENTITY, IDENTITY),
    )
    counts = dict(unseen.paper_counts(genotype, EnasMicro(5)))
    assert counts["sep3@32x32x36"] == 5 * 2
    assert counts["avg3@16x16x72"] == 5
    assert counts["sep5@16x16x72"] == 5 * 2 + 4  # five normal layers, and a reduction that puts this shape out
    assert counts["max3@8x8x144"] == 5 + 1
    assert counts.keys() <= {operation.name for operation in OPERATIONS}


def test_the_thesis_table_comes_from_the_longest_chains(tmp_path: Path) -> None:
    def rows(n: int, us: float) -> list[ElpNasOperation]:
        return [ElpNasOperation(op.name, tables.SETTING, n, 100, us, us / 2, "r1") for op in OPERATIONS]

    table = replace(covering_table(), elp_nas=(*rows(100, 8.0), *rows(1, 80.0))).table()
    drawn = (unseen.Drawn(tmp_path / "n.tflite", "enas", (("sep3@32x32x36", 4.0),)),)
    bare = Measurements("m", (MeasuredNetwork(str(tmp_path / "n.tflite"), 50.0), MeasuredNetwork("other", 1.0)))
    found = unseen.with_paper(bare, drawn, table)
    assert dict(found.paper_mean_us)["sep3@32x32x36"] == 8.0
    assert dict(found.paper_ours_us)["sep3@32x32x36"] == 4.0
    assert [network.paper_counts for network in found.networks] == [(("sep3@32x32x36", 4.0),), ()]
    without = unseen.with_paper(bare, drawn, covering_table().table())
    assert without.paper_mean_us == ()


def test_a_run_that_holds_networks_is_a_file_of_measurements(tmp_path: Path) -> None:
    content = tables.network(tmp_path / "n.tflite").read_bytes()
    sha256 = default_cache().put(content)
    networks = [{"name": "n", "model_sha256": sha256, "latency_us": 12.0, "latency_us_low": 11.0, "latency_us_high": 13.0}]
    run = tables.write_run(tmp_path / "run", tables.run_document(networks=networks))
    found = measured.load(run).networks
    assert [(item.measured_us, item.sha256, item.group) for item in found] == [(12.0, sha256, "n")]
    assert Path(found[0].model).read_bytes() == content
    with pytest.raises(LutFileError, match="holds no measured network"):
        measured.load(tables.write_run(tmp_path / "bare"))


def test_errors_of_the_harness_end_a_command_with_their_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise StorageError(path=Path("x"), cause=OSError(28, "No space left on device"))

    assert guarded(work, also=(StorageError,)) == 1
    assert capsys.readouterr().err == "error: cannot write x: the disk is full\n"


def test_reading_a_table_and_predicting_import_nothing_heavy() -> None:
    code = (
        "import json, sys, luts, luts.predict, luts.storage, luts.lookup, op_models.graph;"
        "print(json.dumps([name for name in sys.modules if '.' not in name]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(ran.stdout))
    assert loaded.isdisjoint({"pandas", "pyarrow", "pydantic", "scipy", "rich", "harness", "difflib", "argparse"})
    assert {"numpy", "luts"} <= loaded
