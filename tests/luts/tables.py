"""Small tables, run tables and networks whose every number is fixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luts.schema import (
    Conditions,
    DeviceHeader,
    Discrepancy,
    Entry,
    Floor,
    Header,
    Lut,
    RunSource,
    Setting,
    SettingHeader,
)
from op_models.builder import GraphBuilder

SETTING = Setting("xnnpack", 1, "cpu1")
CONDITIONS = Conditions("litert", "2.3.0", "ab" * 32, "min", "thread-cpu")
DEVICE = DeviceHeader(cpu="a cpu", private_cache_bytes=1 << 20, facts=(("kernel", "Linux 6"),))
ADD = "ADD(f32[1x8x8x4],f32[1x8x8x4])->f32[1x8x8x4]"
CONV = "CONV_2D(f32[1x8x8x4],*f32[4x1x1x4],*f32[4])->f32[1x8x8x4];pad=same;stride=1x1"


def conv_key(kernel: int = 3, channels: int = 8, size: int = 16) -> str:
    """A convolution that keeps its shape."""
    image = f"f32[1x{size}x{size}x{channels}]"
    weights = f"*f32[{channels}x{kernel}x{kernel}x{channels}]"
    return f"CONV_2D({image},{weights},*f32[{channels}])->{image};pad=same;stride=1x1"


def entry(
    key: str,
    latency_us: float,
    context: str = "hot",
    *,
    sd_us: float = 0.0,
    width: int = 40,
    setting: Setting = SETTING,
    flags: tuple[str, ...] = (),
    run_id: str = "r1",
    seed: int = 0,
) -> Entry:
    """An entry whose replicates are normal with ``sd_us`` about its latency (as exactly as ``width`` of them can)."""
    noise = np.random.default_rng(seed).standard_normal(width)
    if width > 1:
        noise = (noise - noise.mean()) / noise.std(ddof=1)
    return Entry(
        key=key,
        context=context,
        setting=setting,
        n_values=(4, 24),
        latency_us=latency_us,
        latency_us_low=latency_us - 1.96 * sd_us,
        latency_us_high=latency_us + 1.96 * sd_us,
        latency_us_replicates=tuple((latency_us + sd_us * noise).tolist()),
        fixed_us=1.0,
        method="slope",
        rounds=14,
        invocations=140,
        flags=flags,
        run_ids=(run_id,),
    )


def lut(
    entries: Sequence[Entry],
    *,
    floor_us: float | None = None,
    discrepancy: Discrepancy | None = None,
    settings: Sequence[Setting] = (SETTING,),
    conditions: Conditions = CONDITIONS,
    device: DeviceHeader = DEVICE,
) -> Lut:
    """A table of these entries."""
    floor = None if floor_us is None else Floor(floor_us, floor_us, floor_us)
    exact = discrepancy or Discrepancy(0.0, None, 0, "prior")
    headers = tuple(SettingHeader(setting, floor, exact) for setting in settings)
    return Lut(Header("tests", device, conditions, headers, (RunSource("r1", "cd" * 32),)), tuple(entries))


def run_document(run_id: str = "r1", **changes: Any) -> dict[str, Any]:
    """An operation table of a run, as the harness writes it."""
    row = {
        "key": ADD, "context": "hot", "n_values": [4, 24], "latency_us": 2.5, "latency_us_low": 2.4,
        "latency_us_high": 2.6, "latency_us_replicates": [2.45, 2.5, 2.55, 2.5], "fixed_us": 1.5, "invocations": 140,
        "rounds": 14, "flags": [], "method": "slope",
    }  # fmt: skip
    document = {
        "format": "operation-table",
        "version": 1,
        "run_id": run_id,
        "device": {"cpu_model": "a cpu", "l2_bytes": 1 << 20, "kernel": "Linux 6", "clusters": [{"name": "cpu0-1"}]},
        "conditions": {
            "runtime": "litert", "runtime_version": "2.3.0", "binary_sha256": "ab" * 32, "delegate": "xnnpack",
            "threads": 1, "core_cluster": "cpu1", "statistic": "min", "clock": "thread-cpu", "power": None,
            "private_cache_bytes": 1 << 20, "shared_cache_bytes": None,
        },
        "floor_us": 0.8,
        "reference_us": 100.0,
        "entries": [row, row | {"key": CONV, "latency_us": 5.0, "latency_us_low": 4.8, "latency_us_high": 5.2}],
        "failed": [],
    }  # fmt: skip
    return document | changes


def write_run(folder: Path, document: dict[str, Any] | None = None) -> Path:
    """A run directory with nothing but its operation table and a manifest."""
    (folder / "derived").mkdir(parents=True)
    (folder / "derived" / "operations.json").write_text(json.dumps(document or run_document(folder.name)))
    (folder / "manifest.json").write_text(json.dumps({"plan_sha256": "ef" * 32}))
    return folder


def network(path: Path, convolutions: int = 3) -> Path:
    """A ``.tflite`` file: 1x1 convolutions in a row (each the operation CONV), then its input added (ADD)."""
    builder = GraphBuilder("small")
    x = first = builder.input((1, 8, 8, 4))
    for position in range(convolutions):
        weights = builder.constant(np.full((4, 1, 1, 4), position + 1, np.float32))
        bias = builder.constant(np.zeros(4, np.float32))
        options = {"pad": "same", "stride": "1x1"}
        x = builder.op("CONV_2D", [x, weights, bias], [builder.tensor((1, 8, 8, 4))], options)[0]
    builder.output(*builder.op("ADD", [x, first], [builder.tensor((1, 8, 8, 4))]))
    path.write_bytes(builder.build())
    return path
