"""The speed figures of the benchmark: each the best of several tries, since a shared machine only ever adds."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import Speed
from harness import provenance, rundir
from luts.lookup import CostTable
from luts.predict import predict
from op_models import elp_nas, graph, lift
from op_models.arrange import Arrangement
from op_models.spaces.enas import EnasMicro
from op_models.spaces.nas_bench_201 import NasBench201, all_genotypes
from op_models.spaces.product import mobile_space

_TRIES = 7


def best_s(act: Callable[[], object], tries: int = _TRIES) -> float:
    """Least wall time of several tries, in seconds."""
    times = []
    for _ in range(tries):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return min(times)


def _at_most(what: str, value: float, unit: str, bound: float) -> Speed:
    """A figure whose goal is not to exceed a bound in the same unit."""
    return Speed(what=what, value=value, unit=unit, goal=f"<= {bound:g} {unit}", reached=value <= bound)


def device_text() -> str:
    """The device in words."""
    facts = provenance.device_facts()
    runtime = provenance.litert_facts()
    private = "unknown" if facts.l2_bytes is None else f"{facts.l2_bytes // 1024} KiB"
    kind = "a virtual machine" if facts.is_virtual else "a machine"
    return (
        f"{kind} with {facts.core_count} cores ({facts.cpu_model}, {private} private cache), one thread, "
        f"{runtime.name} {runtime.version}, load average {facts.load_average_1min}"
    )


def table_rows(run: Path, seconds: Path) -> list[Speed]:
    """How long a whole ENAS table took from the plan on, and which share of it was measured inference.

    ``seconds`` holds the wall time of the whole call; without it (a run that was resumed) nothing is said.
    """
    if not seconds.exists():
        return []
    wall_s = float(seconds.read_text())
    inside_s = sum(int(rows["wall_ns"].sum()) for _, rows in rundir.read_run(run).rounds()) / 1e9
    share = 100 * inside_s / wall_s
    what = "whole ENAS table: op models made, all operations in all contexts measured"
    return [
        Speed(what=what, value=wall_s, unit="s", goal="<= 60 s", reached=wall_s <= 60),
        Speed(what="of it inside measured inference", value=share, unit="%", goal=">= 70 %", reached=share >= 70),
    ]


def prediction_rows(lut: Path, table: CostTable) -> list[Speed]:
    """Building an op model, and predicting one network."""
    space = EnasMicro(2)
    rng = np.random.default_rng(5)
    network = None
    while network is None or not 280 <= len(network.live) <= 340:
        network = graph.parse(space.graph(space.random(rng)), "network")
    group = network.groups[0]
    lifter = lift.Lifter(network)
    lifted_s = best_s(lambda: lifter.op_model(group, Arrangement("hot", 400)))
    chain = elp_nas.OPERATIONS[0]
    generated_s = best_s(lambda: chain.chain(133))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.tflite"
        path.write_bytes(network.data)
        command = [sys.executable, "-m", "luts.predict", str(path), "--lut", str(lut), "--json"]

        def process() -> None:
            subprocess.run(command, check=True, capture_output=True)

        process_s = best_s(process)

        def in_process() -> None:
            predict(graph.read(path), table)

        whole_ms = 1e3 * best_s(in_process)
        known = graph.read(path)
        predict(known, table)
        known_ms = 1e3 * best_s(lambda: predict(known, table))
    count = len(network.live)
    return [
        _at_most("an op model of 400 operations, lifted", lifted_s, "s", 0.1),
        _at_most("a chain of 399 operations, generated", generated_s, "s", 0.1),
        _at_most(f"luts.predict on {count} operations, a process", process_s, "s", 0.3),
        _at_most("the same in process, graph already read", known_ms, "ms", 5),
        Speed(what="the same in process, reading the file as well", value=whole_ms, unit="ms", goal=None, reached=None),
    ]


def bulk_rows() -> list[Speed]:
    """Scoring whole spaces."""
    space = NasBench201()
    texts = [space.format(genotype) for genotype in all_genotypes()]
    numbers = space.parse_many(texts)
    matrix = space.count_matrix(numbers)  # counts all cells once a process
    values = np.random.default_rng(0).random((len(matrix.keys),)).astype(np.float32)

    def score() -> object:
        found = space.count_matrix(space.parse_many(texts))
        return found.counts @ values

    strings_ms = 1e3 * best_s(score)
    mobile = mobile_space()
    additive = mobile.additive()
    choices = mobile.random_many(1_000_000, 1)
    costs = np.random.default_rng(1).random((additive.base.size,))

    def product() -> object:
        return additive.totals(choices, costs)

    product_s = best_s(product, 3)
    rate = len(choices) / product_s
    sample = additive.matrix(choices[:100_000]).counts
    vector = costs.astype(np.float32)
    matrix_s = best_s(lambda: sample @ vector, 3) * 10
    ratio = product_s / matrix_s
    return [
        _at_most("15,625 NAS-Bench-201 networks from their strings", strings_ms, "ms", 50),
        Speed(
            what=f"a product space of {len(mobile.slots)} slots",
            value=rate / 1e6,
            unit="million networks/s",
            goal=">= 1 million/s, or within 3x of one float32 product",
            reached=rate >= 1e6 or ratio <= 3,
        ),
        Speed(
            what="one float32 matrix product of that size takes, relative to it",
            value=1 / ratio,
            unit="x",
            goal=None,
            reached=None,
        ),
    ]
