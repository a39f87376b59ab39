"""Claims about ``python -m op_models FILE``: what it shows is right, and bad input is one sentence and status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from op_models import __main__ as command
from op_models import graph as graphs
from op_models.builder import GraphBuilder
from tests.op_models import built


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for name, build in built.NETWORKS.items():
        paths[name] = tmp_path / f"{name}.tflite"
        paths[name].write_bytes(build())
    return paths


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert command.main([*map(str, arguments), "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_json_holds_every_operation_with_its_count_and_work(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (described,) = shown(capsys, files["f32"])
    network = graphs.read(files["f32"])
    assert {row["key"] for row in described["operations"]} == {group.spec.key for group in network.groups}
    assert sum(row["count"] for row in described["operations"]) == described["groups"] == len(network.groups)
    by_name = {row["name"]: row for row in described["operations"]}
    # 8 x 8 places, 8 filters of 3 x 3 x 3; then 8 of 1 x 1 x 8; then 5 x 8
    assert by_name["PAD+CONV_2D+RELU"]["macs"] == 64 * 8 * 27
    assert described["totals"]["macs"] == 64 * 8 * 27 + 64 * 8 * 8 + 40
    assert described["totals"]["params"] == (8 * 27 + 8) + (64 + 8) + 40
    assert described["sha256"] == network.sha256


def test_float16_constants_are_shown_as_folded(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (described,) = shown(capsys, files["f16"])
    assert [operator["name"] for operator in described["folded"]] == ["DEQUANTIZE"] * 4
    assert described["executed"] == 4
    assert command.main([str(files["f16"])]) == 0
    assert "4 x DEQUANTIZE" in capsys.readouterr().out


def test_dead_operators_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4))
    built.unary(builder, "LOGISTIC", x)
    builder.output(built.unary(builder, "TANH", x))
    path = tmp_path / "dead.tflite"
    path.write_bytes(builder.build())
    (described,) = shown(capsys, path)
    assert described["dead"] == [{"operator": 0, "name": "LOGISTIC"}]
    assert command.main([str(path)]) == 0
    assert "1 operators reach no output: LOGISTIC" in capsys.readouterr().out


def test_operations_that_need_the_networks_data_are_named(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(files["i8"])]) == 0
    assert "measured on the network's own data: RELU" in capsys.readouterr().out


def test_arrangements_and_their_reasons_are_shown_on_request(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (described,) = shown(capsys, files["f32"], "--arrange")
    for row in described["operations"]:
        assert set(row["arrangements"]) == set(row["contexts"])
        assert all(models["why"] and models["models"] for models in row["arrangements"].values())
    assert command.main([str(files["f32"]), "--arrange"]) == 0
    assert "copies" in capsys.readouterr().out


def write_table(path: Path, keys: list[tuple[str, str]]) -> Path:
    path.write_text(json.dumps({"entries": [{"key": key, "context": context} for key, context in keys]}))
    return path


def test_coverage_tells_what_a_table_has_and_lacks(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = graphs.read(files["f32"])
    known = [group.spec.key for group in network.groups[:2]]
    table = write_table(tmp_path / "lut.json", [(known[0], "hot"), (known[0], "cold"), (known[1], "hot")])
    (described,) = shown(capsys, files["f32"], "--lut", table)
    coverage = described["coverage"]
    assert coverage["groups"] == 2
    assert set(coverage["missing"]) == {group.spec.key for group in network.groups} - set(known)
    assert coverage["macs_frac"] == pytest.approx(1 - 40 / described["totals"]["macs"])
    rows = {row["key"]: row["in_table"] for row in described["operations"]}
    assert rows[known[0]] == ["hot", "cold"]
    assert command.main([str(files["f32"]), "--lut", str(table)]) == 0
    out = capsys.readouterr().out
    assert "MISSING" in out
    assert "covers 2 of 7 groups" in out


def test_one_bad_file_is_one_sentence_and_the_others_are_still_shown(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn.tflite"
    torn.write_bytes(built.network_f32()[:100])
    assert command.main([str(torn), str(files["i8"]), str(tmp_path / "missing.tflite")]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 2
    assert "torn.tflite" in captured.err
    assert "missing.tflite" in captured.err
    assert "i8.tflite" in captured.out


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"entries": 3}', '{"entries": [{"name": 1}]}', "null"])
def test_a_bad_table_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    table = tmp_path / "lut.json"
    table.write_text(content)
    assert command.main([str(files["f32"]), "--lut", str(table)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "lut.json" in captured.err
    assert not captured.out


@given(content=st.binary(max_size=200))
def test_any_bytes_as_a_table_are_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lut.json"
        path.write_bytes(content)
        with pytest.raises(command.TableFileError):
            command.table_keys(path)


def test_the_text_is_cut_to_the_width_of_a_terminal(files: dict[str, Path]) -> None:
    described = command.describe(files["f32"])
    rows = [line for line in command.text(described, 90).splitlines() if "CONV_2D" in line or "SOFTMAX" in line]
    assert max(map(len, rows)) <= 90
    assert any(line.endswith("...") for line in rows)


@pytest.mark.parametrize("arguments", [[], ["--private-cache", "zero", "x"], ["--what"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_command_runs_as_a_module_and_survives_a_closed_pipe(files: dict[str, Path]) -> None:
    call = [sys.executable, "-m", "op_models", str(files["f32"]), str(files["i8"])]
    whole = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert whole.returncode == 0
    assert "MACs" in whole.stdout
    assert not whole.stderr
    cut = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert cut.stdout is not None
    assert cut.stderr is not None
    cut.stdout.close()
    assert b"Traceback" not in cut.stderr.read()
    cut.wait(timeout=120)
    cut.stderr.close()


def test_the_command_imports_no_tensorflow_and_no_rich() -> None:
    code = "import sys; from op_models.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    call = [sys.executable, "-c", code, "/nowhere"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "op_models.graph" in loaded
    assert not loaded & {"tensorflow", "rich", "pydantic", "pandas"}
