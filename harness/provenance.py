"""Who measured, where and with what: facts about the device and the runtime, read without guessing.

Whatever cannot be read is None, never 0. Everything is read below a ``root``, so that a test offers a tree of its own;
only for the real root are the operating system's functions asked where files are missing (macOS, containers, WSL).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from harness import units
from harness.record import Record, Said, Sha256

ROOT = Path("/")
DISTRIBUTION = "elp-lut"
"""What this code is called where Python packages are installed."""

_CPU = "sys/devices/system/cpu"
_CACHE_LEVELS = {"l1d": 1, "l2": 2, "l3": 3}
_GETCONF = {"l1d": "LEVEL1_DCACHE_SIZE", "l2": "LEVEL2_CACHE_SIZE", "l3": "LEVEL3_CACHE_SIZE"}
_SYSCTL = {
    "l1d": ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize"),
    "l2": ("hw.perflevel0.l2cachesize", "hw.l2cachesize"),
    "l3": ("hw.l3cachesize",),
}
_HYPERVISORS = ("kvm", "qemu", "vmware", "virtualbox", "xen", "hyper-v", "virtual machine", "bochs", "parallels")
_LITERT_LIBRARIES = ("libpywrap_litert_common*", "*pywrap_tensorflow_interpreter_wrapper*", "*.so", "*.dylib", "*.pyd")


class CoreCluster(Record):
    """Cores of one kind; ``cores`` are the numbers that an affinity mask takes."""

    name: str
    cores: tuple[NonNegativeInt, ...]
    part: Said | None = None
    capacity: PositiveInt | None = None
    frequency_max_hz: PositiveInt | None = None
    frequency_hz: PositiveInt | None = None
    governor: Said | None = None
    l1d_bytes: PositiveInt | None = None
    l2_bytes: PositiveInt | None = None
    l3_bytes: PositiveInt | None = None


class DeviceFacts(Record):
    """A device as it was when it was looked at; None is "not known"."""

    cpu_model: Said | None
    cpu_vendor: Said | None
    architecture: Said | None
    core_count: PositiveInt | None
    usable_cores: tuple[NonNegativeInt, ...] | None
    """Cores that this process may run on."""
    clusters: tuple[CoreCluster, ...]
    """The fastest first."""
    threads_per_core: PositiveInt | None
    l1d_bytes: PositiveInt | None
    """Caches as the first core of the fastest cluster sees them."""
    l2_bytes: PositiveInt | None
    l3_bytes: PositiveInt | None
    memory_bytes: PositiveInt | None
    kernel: Said | None
    os_name: Said | None
    is_virtual: bool | None
    load_average_1min: Annotated[float, Field(ge=0)] | None
    host_sha256: Sha256 | None
    """Tells hosts apart without naming them."""

    def cluster_of(self, core: int) -> CoreCluster | None:
        """The cluster that a core belongs to, where known."""
        return next((cluster for cluster in self.clusters if core in cluster.cores), None)


class RuntimeFacts(Record):
    """The software that measured."""

    name: str
    version: Said | None
    library: Said | None
    """File name of the shared library that holds the kernels."""
    library_sha256: Sha256 | None
    python_version: str
    numpy_version: str
    package_version: Said | None


class Manifest(Record):
    """What a run directory says about itself, written once before the first measurement."""

    format: Literal["run-manifest"] = "run-manifest"
    version: Literal[1] = 1
    run_id: str
    created_unix_us: NonNegativeInt
    plan_sha256: Sha256
    device: DeviceFacts
    runtime: RuntimeFacts
    command: tuple[Said, ...] = ()
    settings: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Whatever else the run's conditions are made of (delegate, threads, statistic)."""


def device_facts(root: Path = ROOT) -> DeviceFacts:
    """Facts about this computer, or about the one whose /proc, /sys and /etc lie under ``root``; never raises."""
    is_live = root == ROOT
    processors = list(_processors(root))
    first = processors[0] if processors else {}
    numbers = _core_numbers(root, processors)
    is_told = any(_sysfs_caches(root / _CPU / f"cpu{core}") for core in numbers)
    caches_elsewhere = _asked_caches() if is_live and not is_told else {}
    core_count = len(numbers) or (os.cpu_count() if is_live else None)
    clusters = _clusters(root, numbers, processors, caches_elsewhere)
    caches = {name: getattr(clusters[0], f"{name}_bytes") if clusters else None for name in _CACHE_LEVELS}
    for name, size_bytes in caches_elsewhere.items():
        caches[name] = caches[name] or size_bytes
    return DeviceFacts(
        cpu_model=_cpu_model(root, first) or (_sysctl("machdep.cpu.brand_string") if is_live else None),
        cpu_vendor=first.get("vendor_id") or first.get("CPU implementer"),
        architecture=(platform.machine() or None) if is_live else _text(root / "proc/sys/kernel/arch"),
        core_count=core_count or None,
        usable_cores=_usable_cores(root, is_live),
        clusters=clusters,
        threads_per_core=_threads_per_core(root, numbers),
        l1d_bytes=caches["l1d"],
        l2_bytes=caches["l2"],
        l3_bytes=caches["l3"],
        memory_bytes=_memory_bytes(root, is_live),
        kernel=_kernel(root, is_live),
        os_name=_os_name(root, is_live),
        is_virtual=_is_virtual(root, first),
        load_average_1min=_load_average(root, is_live),
        host_sha256=_host_sha256(root, is_live),
    )


def runtime_facts(name: str, *, distribution: str, library: Path | None = None, package: str = DISTRIBUTION) -> RuntimeFacts:
    """Facts about a runtime that came as a Python ``distribution``; never raises for what is not there.

    ``library`` is the shared object that holds the kernels, ``package`` the distribution that this code came in.
    """
    return RuntimeFacts(
        name=name,
        version=_version(distribution),
        library=library.name if library is not None else None,
        library_sha256=file_sha256(library) if library is not None else None,
        python_version=platform.python_version(),
        numpy_version=_version("numpy") or "unknown",
        package_version=_version(package),
    )


def litert_facts(package: str = DISTRIBUTION) -> RuntimeFacts:
    """Facts about the installed ai-edge-litert, found without importing it."""
    return runtime_facts(
        "litert",
        distribution="ai-edge-litert",
        library=find_library("ai_edge_litert", _LITERT_LIBRARIES),
        package=package,
    )


def find_library(module: str, patterns: tuple[str, ...]) -> Path | None:
    """The largest file that matches the first matching pattern in an installed module's directory."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    for directory in (spec.submodule_search_locations or ()) if spec is not None else ():
        for pattern in patterns:
            found = [path for path in Path(directory).glob(pattern) if path.is_file()]
            if found:
                return max(found, key=lambda path: (path.stat().st_size, path.name))
    return None


def file_sha256(path: Path) -> str | None:
    """The hash of a file's content; None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def core_list(text: str) -> tuple[int, ...]:
    """Core numbers as Linux writes them; empty where the text is not such a list.

    >>> core_list("0-3,6")
    (0, 1, 2, 3, 6)
    """
    found: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is None:
            return ()
        first = int(match[1])
        found.extend(range(first, int(match[2] or first) + 1))
    return tuple(found)


def cluster_name(cores: tuple[int, ...]) -> str:
    """A short name for cores.

    >>> cluster_name((0, 1, 2, 3, 6))
    'cpu0-3,6'
    """
    spans: list[list[int]] = []
    for core in sorted(cores):
        if spans and spans[-1][1] == core - 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    return "cpu" + ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _clusters(
    root: Path, numbers: tuple[int, ...], processors: list[dict[str, str]], fallback: Mapping[str, int]
) -> tuple[CoreCluster, ...]:
    parts = {item.get("processor"): item for item in processors}
    kinds: dict[tuple[object, ...], list[int]] = {}
    for core in numbers:
        kind = (
            parts.get(str(core), {}).get("CPU part"),
            _number(root / _CPU / f"cpu{core}/cpu_capacity"),
            _number(root / _CPU / f"cpu{core}/cpufreq/cpuinfo_max_freq"),
        )
        kinds.setdefault(kind, []).append(core)
    clusters = [_cluster(root, tuple(cores), parts, fallback) for cores in kinds.values()]
    return tuple(sorted(clusters, key=lambda item: (-(item.capacity or 0), -(item.frequency_max_hz or 0), item.cores)))


def _cluster(
    root: Path, cores: tuple[int, ...], parts: Mapping[str | None, dict[str, str]], fallback: Mapping[str, int]
) -> CoreCluster:
    first = root / _CPU / f"cpu{cores[0]}"
    info = parts.get(str(cores[0]), {})
    caches = {**fallback, **_sysfs_caches(first)}
    max_khz = _number(first / "cpufreq/cpuinfo_max_freq")
    now_khz = _number(first / "cpufreq/scaling_cur_freq")
    now_mhz = _float(info.get("cpu MHz"))
    if now_khz is not None:
        now_hz: int | None = now_khz * 1_000
    else:
        now_hz = round(now_mhz * 1e6) if now_mhz is not None else None
    return CoreCluster(
        name=cluster_name(cores),
        cores=cores,
        part=info.get("CPU part"),
        capacity=_number(first / "cpu_capacity") or None,
        frequency_max_hz=(max_khz or 0) * 1_000 or None,
        frequency_hz=now_hz or None,
        governor=_text(first / "cpufreq/scaling_governor"),
        l1d_bytes=caches.get("l1d"),
        l2_bytes=caches.get("l2"),
        l3_bytes=caches.get("l3"),
    )


def _sysfs_caches(core: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for index in sorted(core.glob("cache/index*")):
        level, kind = _number(index / "level"), _text(index / "type")
        size_bytes = units.bytes_of(_text(index / "size") or "")
        for name, wanted in _CACHE_LEVELS.items():
            if level == wanted and kind in ("Data", "Unified") and size_bytes:
                found[name] = size_bytes
    return found


def _asked_caches() -> dict[str, int]:
    """Cache sizes from getconf (Linux) or sysctl (macOS) where they tell."""
    asked = {name: _asked("getconf", key) or _first_sysctl(_SYSCTL[name]) for name, key in _GETCONF.items()}
    sizes = {name: _number_of(text) for name, text in asked.items()}
    return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes}


def _processors(root: Path) -> Iterator[dict[str, str]]:
    """The blocks of /proc/cpuinfo; a block without a processor number is the trailer that ARM kernels print."""
    for block in (_text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if fields:
            yield fields


def _cpu_model(root: Path, first: Mapping[str, str]) -> str | None:
    trailer = [item for item in _processors(root) if "processor" not in item]
    names = [first.get("model name"), first.get("cpu model"), *(item.get("Hardware") for item in trailer)]
    names.append((_text(root / "proc/device-tree/model") or "").strip("\0"))
    if first.get("CPU part"):
        names.append(f"implementer {first.get('CPU implementer', '?')} part {first['CPU part']}")
    return next((name for name in names if name), None)


def _core_numbers(root: Path, processors: list[dict[str, str]]) -> tuple[int, ...]:
    online = core_list(_text(root / _CPU / "online") or "")
    if online:
        return online
    named = [path.name for path in _glob(root / _CPU, "cpu[0-9]*")]
    listed = [f"cpu{item['processor']}" for item in processors if item.get("processor", "").isdigit()]
    return tuple(sorted(int(name[3:]) for name in set(named or listed) if name[3:].isdigit()))


def _usable_cores(root: Path, is_live: bool) -> tuple[int, ...] | None:
    if is_live and hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return core_list(_field(root / "proc/self/status", "Cpus_allowed_list") or "") or None


def _threads_per_core(root: Path, numbers: tuple[int, ...]) -> int | None:
    if not numbers:
        return None
    return len(core_list(_text(root / _CPU / f"cpu{numbers[0]}/topology/thread_siblings_list") or "")) or None


def _memory_bytes(root: Path, is_live: bool) -> int | None:
    told = units.bytes_of((_field(root / "proc/meminfo", "MemTotal") or "").replace(" ", ""))
    if told or not is_live:
        return told or None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") or None
    except (ValueError, OSError):
        return _number_of(_sysctl("hw.memsize"))


def _kernel(root: Path, is_live: bool) -> str | None:
    release = _text(root / "proc/sys/kernel/osrelease")
    if release:
        return f"{_text(root / 'proc/sys/kernel/ostype') or 'Linux'} {release}"
    return f"{platform.system()} {platform.release()}".strip() or None if is_live else None


def _os_name(root: Path, is_live: bool) -> str | None:
    for line in (_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip("\"'") or None
    return platform.platform() or None if is_live else None


def _is_virtual(root: Path, first: Mapping[str, str]) -> bool | None:
    """True or False where something says so: Intel and AMD always do, ARM only sometimes."""
    board = " ".join(_text(root / "sys/class/dmi/id" / name) or "" for name in ("sys_vendor", "product_name")).lower()
    release = (_text(root / "proc/sys/kernel/osrelease") or "").lower()
    flags = first.get("flags", "").split()
    if "hypervisor" in flags or "microsoft" in release or any(name in board for name in _HYPERVISORS):
        return True
    if _text(root / "sys/hypervisor/type"):
        return True
    return False if flags else None


def _load_average(root: Path, is_live: bool) -> float | None:
    told = _float((_text(root / "proc/loadavg") or "").partition(" ")[0])
    if told is not None or not is_live:
        return told
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _host_sha256(root: Path, is_live: bool) -> str | None:
    name = _text(root / "proc/sys/kernel/hostname") or (socket.gethostname() if is_live else None)
    machine = _text(root / "etc/machine-id")
    if not name and not machine:
        return None
    return hashlib.sha256(f"{name or ''}\n{machine or ''}".encode()).hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _sysctl(key: str) -> str | None:
    return _asked("sysctl", "-n", key) if platform.system() == "Darwin" else None


def _first_sysctl(keys: tuple[str, ...]) -> str | None:
    return next((told for key in keys if (told := _sysctl(key)) is not None), None)


def _asked(*command: str) -> str | None:
    """What a small tool of the operating system prints; None where it is missing or refuses."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None if done.returncode == 0 else None


def _field(path: Path, name: str) -> str | None:
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip() or None
    return None


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return list(directory.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str | None:
    """A small file's text without the space around it; None where it is missing, unreadable or empty."""
    try:
        return path.read_text("utf-8", "replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    return _number_of(_text(path))


def _number_of(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text) else None


def _float(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text) else None
