"""The benchmark's zoo: which files it holds, and that both instances of each are prepared."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.zoo_files import LIFT_SEED, UNSEEN_SEED, ZooFile, main, prepare, zoo_files
from op_models import zoo
from op_models.convert import cached_path, reseed
from op_models.layers import NetworkBuilder


def test_the_zoo_is_as_large_as_the_benchmark_asks() -> None:
    files = list(zoo_files())
    assert len({file.name for file in files}) == len(files)
    counts = Counter(file.precision for file in files)
    assert counts["float32"] + counts["float16"] >= 24
    assert counts["int8"] >= 10
    assert all(len({file.size for file in files if file.network == name}) >= 2 for name in {f.network for f in files})


def test_every_file_is_prepared_twice_with_other_weights_and_failures_do_not_stop_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("op_models.convert.installed_versions", dict)  # no TensorFlow: only what is cached
    builder = NetworkBuilder()
    data = builder.build(builder.conv2d(builder.input((1, 8, 8, 3)), 8, 3))
    cached_path(zoo.source("mobilenet_v1", 96), "float32", cache=tmp_path).write_bytes(data)
    chosen = [ZooFile("mobilenet_v2", 96, "int8"), ZooFile("mobilenet_v1", 96, "float32")]

    failed = prepare(tmp_path / "out", chosen, cache=tmp_path)

    assert list(failed) == ["mobilenet_v2-96-int8"]
    index = json.loads((tmp_path / "out" / "zoo.json").read_text())
    (entry,) = index["files"]
    assert (entry["lift"]["seed"], entry["unseen"]["seed"]) == (LIFT_SEED, UNSEEN_SEED)
    assert (tmp_path / "out" / entry["lift"]["path"]).read_bytes() == data
    assert (tmp_path / "out" / entry["unseen"]["path"]).read_bytes() == reseed(data, UNSEEN_SEED)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(tmp_path / "out" / role / "mobilenet_v1-96-float32.tflite") for role in ("lift", "unseen")]


def test_a_name_that_no_file_has_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--only", "alexnet"]) == 2
    assert "alexnet" in capsys.readouterr().err
