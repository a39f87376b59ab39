"""The spaces command draws networks that a runtime accepts, the same for a seed, and refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from op_models import graph
from op_models.spaces.__main__ import main
from op_models.spaces.registry import SPACES


def test_drawn_networks_ask_only_for_the_listed_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nas-bench-201", "--out", str(tmp_path / "a"), "--count", "2", "--seed", "4"]) == 0
    first = capsys.readouterr().out.split()
    assert main(["nas-bench-201", "--out", str(tmp_path / "b"), "--count", "2", "--seed", "4"]) == 0
    second = capsys.readouterr().out.split()
    assert [Path(path).read_bytes() for path in first] == [Path(path).read_bytes() for path in second]
    keys = SPACES["nas-bench-201"].operation_keys()
    assert all(group.spec.key in keys for path in first for group in graph.read(path).groups)


def test_without_a_directory_the_operations_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nas-bench-201"]) == 0
    assert capsys.readouterr().out.split() == sorted(SPACES["nas-bench-201"].operation_keys())


@pytest.mark.parametrize("arguments", [["nowhere"], ["enas-micro", "--count", "0"], ["enas-micro", "--seed", "-1"]])
def test_a_wrong_request_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["nas-bench-201", "--out", str(tmp_path / "file"), "--count", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
