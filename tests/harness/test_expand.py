from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import plan as plans
from harness.expand import Expansion, expand
from harness.plan import Plan
from op_models import feeds, graph
from op_models.arrange import CacheSizes
from op_models.artifact import ArtifactCache
from op_models.builder import GraphBuilder
from op_models.errors import DynamicShapeError, ModelFileError, OpModelError, UnsupportedModelError
from tests.harness.fake_bench import KEYS, plan_text
from tests.op_models.built import NETWORKS, conv_f32, edited, network_f32

CACHES = CacheSizes()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


def plan_of(*paths: Path, contexts: str = '["hot", "cold", "far"]') -> Plan:
    models = json.dumps([str(path) for path in paths])
    return plans.parse(f"plan_format = 1\n[operations]\nmodels = {models}\ncontexts = {contexts}\n")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def measured(expansion: Expansion) -> dict[tuple[str | None, str | None], list[int]]:
    found: dict[tuple[str | None, str | None], list[int]] = {}
    for job in expansion.jobs:
        if job.role == "operation":
            found.setdefault((job.key, job.context), []).append(job.copies)
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_operation_of_a_network_is_measured(tmp_path: Path, cache: ArtifactCache, kind: str) -> None:
    path = written(tmp_path / "net.tflite", NETWORKS[kind]())
    expansion = expand(plan_of(path), cache, CACHES)
    # An operation that branches on signs is measured on several kinds of data, each an entry of its own.
    assert {key.partition(";signs=")[0] for key in expansion.keys} == {group.spec.key for group in graph.read(path).groups}
    assert expansion.unliftable == {}
    for (_, context), copies in measured(expansion).items():
        assert len(copies) == (2 if context == "hot" else 1)
    assert all(cache.get(job.model_sha256) for job in expansion.jobs)
    assert all(graph.parse(cache.get(job.model_sha256)).operators for job in expansion.jobs)


def test_the_same_plan_gives_the_same_jobs_in_another_process(tmp_path: Path, cache: ArtifactCache) -> None:
    plan = written(tmp_path / "plan.toml", plan_text(contexts='["hot", "cold"]', extra="elp_nas = true").encode())
    told = (
        "import sys\nfrom pathlib import Path\nfrom harness import plan\nfrom harness.expand import expand\n"
        "from op_models.arrange import CacheSizes\nfrom op_models.artifact import ArtifactCache\n"
        "made = expand(plan.read(Path(sys.argv[1]))[0], ArtifactCache(Path(sys.argv[2])), CacheSizes())\n"
        "print(*(f'{job.job_id} {job.block} {job.model_sha256}' for job in made.jobs), sep='\\n')\n"
    )
    here = [f"{job.job_id} {job.block} {job.model_sha256}" for job in expand(plans.read(plan)[0], cache, CACHES).jobs]
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", told, str(plan), str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split("\n")[:-1] == here


def test_a_changed_weight_changes_the_ids_of_what_reads_it_alone(tmp_path: Path, cache: ArtifactCache) -> None:
    data = network_f32()
    before = expand(plan_of(written(tmp_path / "a.tflite", data)), cache, CACHES)

    def change(model: Any) -> None:
        buffers = [buffer for buffer in model.buffers if buffer.data is not None and len(buffer.data) == 4 * 5 * 8]
        (weights,) = buffers
        weights.data = weights.data.copy()
        weights.data[3] ^= 1

    after = expand(plan_of(written(tmp_path / "a.tflite", edited(data, change))), cache, CACHES)
    assert [job.subject for job in before.jobs] == [job.subject for job in after.jobs]
    changed = {old.name for old, new in zip(before.jobs, after.jobs, strict=True) if old.job_id != new.job_id}
    assert {name.split()[0] for name in changed} == {"FULLY_CONNECTED"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_operation_of_two_networks_is_measured_once(tmp_path: Path, cache: ArtifactCache, kind: str) -> None:
    paths = [written(tmp_path / f"{i}.tflite", NETWORKS[kind]()) for i in range(2)]
    once, twice = (expand(plan_of(*chosen), cache, CACHES) for chosen in (paths[:1], paths))
    assert [job.job_id for job in once.jobs] == [job.job_id for job in twice.jobs]


def dense_network(layers: int) -> bytes:
    """Dense layers of one shape with 2 MB of weights each."""
    builder = GraphBuilder()
    x = builder.input((1, 700))
    weights = [builder.constant(np.full((700, 700), 1e-3 * i, np.float32)) for i in range(layers)]
    for filters in weights:
        out = builder.tensor((1, 700))
        builder.op("FULLY_CONNECTED", [x, filters, -1], [out])
        x = out
    builder.output(x)
    return builder.build()


def test_a_context_that_only_the_larger_of_two_networks_needs_is_not_lost(tmp_path: Path, cache: ArtifactCache) -> None:
    small, large = (written(tmp_path / f"{n}.tflite", dense_network(n)) for n in (1, 20))
    contexts = [
        {context for _, context in measured(expand(plan_of(*paths), cache, CACHES))}
        for paths in ((small,), (large,), (small, large), (large, small))
    ]
    assert contexts[0] < contexts[1]
    assert contexts[1] == contexts[2] == contexts[3]


def test_an_operation_that_lacks_the_contexts_asked_for_is_measured_in_the_one_it_has(
    tmp_path: Path, cache: ArtifactCache
) -> None:
    path = written(tmp_path / "large.tflite", dense_network(20))
    found = measured(expand(plan_of(path, contexts='["hot"]'), cache, CACHES))
    assert [context for _, context in found] == ["cold"]


def test_only_the_contexts_asked_for_are_measured(tmp_path: Path, cache: ArtifactCache) -> None:
    path = written(tmp_path / "net.tflite", network_f32())
    contexts = {context for _, context in measured(expand(plan_of(path, contexts='["hot"]'), cache, CACHES))}
    assert contexts == {"hot"}


def test_keys_are_measured_without_a_file(cache: ArtifactCache) -> None:
    expansion = expand(plans.parse(plan_text()), cache, CACHES)
    assert expansion.keys == set(KEYS)
    assert len({job.block for job in expansion.jobs}) == 2


def test_networks_are_jobs_of_their_own_bytes(tmp_path: Path, cache: ArtifactCache) -> None:
    path = written(tmp_path / "net.tflite", network_f32())
    plan, _ = plans.for_models((), networks=(path,))
    (job,) = [job for job in expand(plan, cache, CACHES).jobs if job.role == "network"]
    assert job.name == str(path)
    assert cache.get(job.model_sha256) == path.read_bytes()


def test_the_twelve_operations_of_elp_nas_are_jobs_of_two_lengths(cache: ArtifactCache) -> None:
    plan = plans.parse("plan_format = 1\n[operations]\nelp_nas = true\n")
    jobs = [job for job in expand(plan, cache, CACHES).jobs if job.role == "elp-nas"]
    assert len({job.name for job in jobs}) == 12
    assert {job.copies for job in jobs} == {1, 100}


def test_a_quantised_relu_is_fed_with_the_data_of_its_network(tmp_path: Path, cache: ArtifactCache) -> None:
    path = written(tmp_path / "net.tflite", NETWORKS["i8"]())
    expansion = expand(plan_of(path), cache, CACHES)
    fed = {job.key: job.feed_sha256 for job in expansion.jobs if job.feed_sha256 is not None}
    assert fed
    assert all(key is not None and key.startswith("RELU") for key in fed)
    assert set(fed.values()) == set(expansion.feeds)
    assert expansion.unfed == {}


def test_a_branching_operation_is_also_measured_on_one_sign_and_on_even_signs(tmp_path: Path, cache: ArtifactCache) -> None:
    path = written(tmp_path / "net.tflite", NETWORKS["i8"]())
    jobs = [job for job in expand(plan_of(path), cache, CACHES).jobs if (job.key or "").startswith("RELU")]
    (own,) = [job for job in jobs if job.key is not None and ";signs=" not in job.key]
    assert {job.key for job in jobs} == {own.key, f"{own.key};signs=one", f"{own.key};signs=even"}
    assert {job.context for job in jobs} == {"cold"}
    assert len({job.feed_sha256 for job in jobs}) == 3
    assert len({job.model_sha256 for job in jobs}) == 1
    assert own.feed_sha256 is not None
    content = feeds.load(cache.path(own.feed_sha256))
    assert len(content) == own.copies


def with_custom(data: bytes) -> bytes:
    """The network with its SOFTMAX made a custom operator that nobody knows."""

    def change(model: Any) -> None:
        (code,) = [code for code in model.operatorCodes if code.builtinCode == 25]
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = "Unheard"
        (operator,) = [op for op in model.subgraphs[0].operators if model.operatorCodes[op.opcodeIndex] is code]
        operator.builtinOptions, operator.builtinOptionsType = None, 0

    return edited(data, change)


def test_a_custom_operator_is_a_job_like_any_other(tmp_path: Path, cache: ArtifactCache) -> None:
    expansion = expand(plan_of(written(tmp_path / "net.tflite", with_custom(network_f32()))), cache, CACHES)
    assert any(key.startswith("CUSTOM:Unheard") for key in expansion.keys | set(expansion.unliftable))
    assert len(expansion.keys) > 3


def test_a_model_of_open_shape_is_refused(tmp_path: Path, cache: ArtifactCache) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shapeSignature = np.array([1, -1, 8, 3], np.int32)

    with pytest.raises(DynamicShapeError, match="open"):
        expand(plan_of(written(tmp_path / "net.tflite", edited(network_f32(), change))), cache, CACHES)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 4 + b"TFL3" + b"\xff" * 60, network_f32()[:-1000]])
def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path, cache: ArtifactCache, data: bytes) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError)):
        expand(plan_of(written(tmp_path / "net.tflite", data)), cache, CACHES)


def test_an_operation_whose_tensors_do_not_fit_it_is_told_and_the_others_go_on(tmp_path: Path, cache: ArtifactCache) -> None:
    builder = GraphBuilder()
    x = conv_f32(builder, builder.input((1, 8, 8, 3)), 4)
    builder.output(x)

    def change(model: Any) -> None:
        (operator,) = model.subgraphs[0].operators
        operator.inputs = operator.inputs[:1]

    path = written(tmp_path / "bad.tflite", edited(builder.build(), change))
    good = written(tmp_path / "good.tflite", network_f32())
    expansion = expand(plan_of(path, good), cache, CACHES)
    assert expansion.keys == {group.spec.key for group in graph.read(good).groups}
    ((key, reason),) = expansion.unliftable.items()
    assert key.startswith("CONV_2D")
    assert "do not fit" in reason


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_a_damaged_file_gives_jobs_or_one_of_our_errors(
    tmp_path: Path, cache: ArtifactCache, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(network_f32())
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    path = written(tmp_path / "net.tflite", bytes(data))
    try:
        expand(plan_of(path), cache, CACHES)
    except OpModelError as error:
        assert "\n" not in str(error)
