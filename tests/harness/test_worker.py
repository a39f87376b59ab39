from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.devices import worker
from harness.raw import RAW_DTYPE, RawRows
from op_models import feeds
from op_models.builder import GraphBuilder
from op_models.standing import reference_model
from tests.harness.processes import is_alive
from tests.op_models.built import NETWORKS, network_f32


def wanted(path: Path, **other: object) -> dict[str, object]:
    return {"path": str(path), "delegate": "xnnpack", "threads": 1, "seed": 1, "feed": None} | other


def talk(*requests: dict[str, object]) -> tuple[list[dict[str, Any]], list[RawRows]]:
    """The answers (without the lines that only tell progress) and the rounds."""
    replies = io.BytesIO()
    worker.Worker(io.BytesIO(b"".join(json.dumps(request).encode() + b"\n" for request in requests)), replies).serve()
    replies.seek(0)
    answers, rounds = [], []
    while line := replies.readline():
        answer = json.loads(line)
        if "loading" in answer:
            continue
        answers.append(answer)
        if "bytes" in answer:
            rounds.append(np.load(io.BytesIO(replies.read(answer["bytes"])), allow_pickle=False))
    return answers, rounds


def load(*models: dict[str, object]) -> dict[str, object]:
    return {"op": "load", "core": None, "models": list(models)}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.tflite"
    path.write_bytes(network_f32())
    return path


def test_a_round_has_a_row_an_invocation_in_the_order_asked_for(network: Path) -> None:
    (loaded, measured), (rows,) = talk(
        load(wanted(network), wanted(network)), {"op": "round", "order": [1, 0], "invokes": [2, 3]}
    )
    assert (loaded["loaded"], loaded["failed"], loaded["pinned"]) == (2, {}, False)
    assert all(us > 0 for us in loaded["expected_us"])
    assert measured["failed"] == {}
    assert rows.dtype == RAW_DTYPE
    assert rows["job"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert rows["invoke"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert (rows["wall_ns"] > 0).all()
    assert (np.diff(rows["at_ns"].astype(np.int64)) > 0).all()
    # A thread cannot use more processor time than passes, beyond what reading the clocks takes.
    assert (rows["cpu_ns"].astype(np.int64) <= rows["wall_ns"].astype(np.int64) + 100_000).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("delegate", ["xnnpack", "none"])
def test_networks_of_every_type_run_on_both_kinds_of_kernels(tmp_path: Path, kind: str, delegate: str) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(NETWORKS[kind]())
    (loaded,), _ = talk(load(wanted(path, delegate=delegate)))
    assert loaded["failed"] == {}


def test_a_model_that_cannot_be_loaded_is_told_and_the_others_go_on(tmp_path: Path, network: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(network_f32()[:200])
    models = [wanted(broken), wanted(network), wanted(tmp_path / "absent"), wanted(network, delegate="unheard-of")]
    (loaded, measured), (rows,) = talk(load(*models), {"op": "round", "order": [0, 1], "invokes": [1, 1]})
    assert sorted(loaded["failed"]) == ["0", "2", "3"]
    assert loaded["loaded"] == 1
    assert [us is None for us in loaded["expected_us"]] == [True, False, True, True]
    assert measured["failed"] == {"0": "not loaded"}
    assert set(rows["job"].tolist()) == {1}


def test_a_round_of_nothing_is_no_rows(tmp_path: Path) -> None:
    (_, measured), (rows,) = talk(load(wanted(tmp_path / "absent")), {"op": "round", "order": [0], "invokes": [4]})
    assert measured["failed"] == {"0": "not loaded"}
    assert rows.size == 0


def test_another_load_replaces_the_models(network: Path) -> None:
    answers, rounds = talk(load(wanted(network)), load(), load(wanted(network)), {"op": "round", "order": [0], "invokes": [1]})
    assert [answer.get("loaded") for answer in answers] == [1, 0, 1, None]
    assert rounds[0].size == 2


def test_it_says_which_model_it_is_about_to_load(network: Path) -> None:
    replies = io.BytesIO()
    worker.Worker(io.BytesIO(json.dumps(load(wanted(network), wanted(network))).encode()), replies).serve()
    told = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert told[:2] == [{"loading": 0}, {"loading": 1}]


def test_quit_ends_the_conversation(network: Path) -> None:
    answers, _ = talk({"op": "quit"}, load(wanted(network)))
    assert answers == []


@pytest.mark.parametrize(
    ("dtype", "name"), [("f32", "ABS"), ("i8", "RELU"), ("u8", "RELU"), ("bool", "LOGICAL_NOT"), ("i32", "ABS")]
)
def test_inputs_get_the_data_that_feeds_says_they_get(tmp_path: Path, dtype: str, name: str) -> None:
    from op_models import graph
    from op_models.builder import Quantization

    builder = GraphBuilder()
    scale = Quantization((0.05,), 128 if dtype == "u8" else 0) if dtype in ("i8", "u8") else None
    inputs = [builder.input((3, 40), dtype, scale) for _ in range(2)]
    builder.output(*(builder.op(name, [x], [builder.tensor((3, 40), dtype, scale)])[0] for x in inputs))
    path = tmp_path / "net.tflite"
    path.write_bytes(builder.build())
    model = worker.LoadedModel(str(path), delegate="none", threads=1, seed=9, feed=None)
    held = [model._interpreter.get_tensor(detail["index"]) for detail in model._interpreter.get_input_details()]
    for found, expected in zip(held, feeds.network_inputs(graph.read(path), seed=9), strict=True):
        assert np.array_equal(found, expected)


def test_a_feed_gives_the_inputs_in_order_also_beyond_ten(tmp_path: Path) -> None:
    builder = GraphBuilder()
    inputs = [builder.input((1, 2)) for _ in range(12)]
    builder.output(*(builder.op("ABS", [x], [builder.tensor((1, 2))])[0] for x in inputs))
    path = tmp_path / "net.tflite"
    path.write_bytes(builder.build())
    numbered: dict[str, Any] = {f"x{i}": np.full((1, 2), i, np.float32) for i in range(12)}
    np.savez(tmp_path / "feed.npz", **numbered)
    model = worker.LoadedModel(str(path), delegate="none", threads=1, seed=1, feed=str(tmp_path / "feed.npz"))
    held = [model._interpreter.get_tensor(detail["index"])[0, 0] for detail in model._interpreter.get_input_details()]
    assert held == list(range(12))


def test_pinning_to_nothing_or_to_no_core_changes_nothing() -> None:
    before = os.sched_getaffinity(0)
    assert not worker.pin(None)
    assert not worker.pin(4000)
    assert os.sched_getaffinity(0) == before


# --- as a process -----------------------------------------------------------------------------------------------


def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.devices.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def test_it_ends_when_its_pipe_closes() -> None:
    with process() as started:
        told, said = started.communicate(b"", timeout=60)
    assert (started.returncode, told, said) == (0, b"", b"")


def test_what_the_runtime_prints_does_not_mix_with_the_answers(network: Path) -> None:
    request = json.dumps(load(wanted(network))).encode() + b"\n"
    with process() as started:
        told, said = started.communicate(request, timeout=60)
    assert [sorted(json.loads(line)) for line in told.splitlines()] == [
        ["loading"],
        ["expected_us", "failed", "loaded", "pinned"],
    ]
    assert b"INFO" in said  # LiteRT introduces its delegate


def test_it_is_pinned_where_it_is_told_to(network: Path) -> None:
    core = max(os.sched_getaffinity(0))
    request = load(wanted(network)) | {"core": core}
    with process() as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(json.dumps(request).encode() + b"\n")
        started.stdin.flush()
        assert json.loads(started.stdout.readline()) == {"loading": 0}
        assert json.loads(started.stdout.readline())["pinned"]
        assert os.sched_getaffinity(started.pid) == {core}
        started.stdin.close()


def test_ctrl_c_of_the_terminal_is_left_to_the_process_that_started_it() -> None:
    with process() as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(json.dumps(load()).encode() + b"\n")
        started.stdin.flush()
        started.stdout.readline()  # it is up
        started.send_signal(signal.SIGINT)
        time.sleep(0.05)
        assert started.poll() is None
        started.stdin.close()
        assert started.wait(60) == 0


def test_it_ends_with_its_parent_also_in_the_middle_of_a_round(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(reference_model())
    endless = {"op": "round", "order": [0], "invokes": [1_000_000]}
    talk = "".join(json.dumps(request) + "\n" for request in (load(wanted(path)), endless))
    parent = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'harness.devices.worker'], stdin=-1, stdout=-1)\n"
        "worker.stdin.write(sys.argv[1].encode()); worker.stdin.flush()\n"
        "worker.stdout.readline(); worker.stdout.readline()\n"  # it is loaded, and the round begins
        "print(worker.pid, flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", parent, talk], stdout=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert is_alive(pid)
        started.kill()
        deadline = time.monotonic() + 20
        while is_alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
