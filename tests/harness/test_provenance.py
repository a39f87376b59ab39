from __future__ import annotations

import doctest
import hashlib
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import provenance
from harness.provenance import DeviceFacts, cluster_name, core_list, device_facts, litert_facts, runtime_facts

X86_CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU @ 2.20GHz
cpu MHz\t\t: 2200.152
flags\t\t: fpu vme hypervisor avx2

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU @ 2.20GHz
cpu MHz\t\t: 2200.152
flags\t\t: fpu vme hypervisor avx2
"""
ARM_BLOCK = "processor\t: {core}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpu(core: int, name: str) -> str:
    return f"sys/devices/system/cpu/cpu{core}/{name}"


def caches(core: int, *sizes: tuple[int, str, str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for at, (level, kind, size) in enumerate(sizes):
        base = cpu(core, f"cache/index{at}")
        files |= {f"{base}/level": f"{level}\n", f"{base}/type": f"{kind}\n", f"{base}/size": f"{size}\n"}
    return files


def phone(root: Path) -> Path:
    parts = ["0xd05"] * 4 + ["0xd0d"] * 3 + ["0xd44"]
    blocks = [ARM_BLOCK.format(core=core, part=part) for core, part in enumerate(parts)]
    files = {
        "proc/cpuinfo": "\n".join([*blocks, "Hardware\t: Qualcomm Technologies, Inc SM8350\n"]),
        "sys/devices/system/cpu/online": "0-7\n",
        "proc/meminfo": "MemTotal:        7654321 kB\nMemFree: 5 kB\n",
        "proc/sys/kernel/osrelease": "5.4.61-android\n",
        "proc/sys/kernel/hostname": "localhost\n",
        "proc/loadavg": "3.25 2.1 1.0 2/900 1\n",
        "proc/self/status": "Name:\tsh\nCpus_allowed_list:\t4-7\n",
    }
    for core, part in enumerate(parts):
        capacity, khz, size = {"0xd05": (325, 1804800, "128K"), "0xd0d": (800, 2419200, "256K")}.get(part, (1024, 2841600, "1M"))
        files |= {
            cpu(core, "cpu_capacity"): f"{capacity}\n",
            cpu(core, "cpufreq/cpuinfo_max_freq"): f"{khz}\n",
            cpu(core, "cpufreq/scaling_cur_freq"): "1000000\n",
            cpu(core, "cpufreq/scaling_governor"): "schedutil\n",
            cpu(core, "topology/thread_siblings_list"): f"{core}\n",
        }
        files |= caches(core, (1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", size))
    return tree(root, files)


def test_a_phone_has_three_clusters_the_fastest_first(tmp_path: Path) -> None:
    facts = device_facts(phone(tmp_path))
    assert [(item.name, item.capacity, item.part) for item in facts.clusters] == [
        ("cpu7", 1024, "0xd44"),
        ("cpu4-6", 800, "0xd0d"),
        ("cpu0-3", 325, "0xd05"),
    ]
    prime = facts.clusters[0]
    assert (prime.frequency_max_hz, prime.frequency_hz, prime.governor) == (2_841_600_000, 1_000_000_000, "schedutil")
    assert [item.l2_bytes for item in facts.clusters] == [1 << 20, 256 << 10, 128 << 10]
    assert (facts.l1d_bytes, facts.l2_bytes, facts.l3_bytes) == (32 << 10, 1 << 20, None)
    assert (facts.core_count, facts.threads_per_core, facts.usable_cores) == (8, 1, (4, 5, 6, 7))
    assert facts.cpu_model == "Qualcomm Technologies, Inc SM8350"
    assert facts.cpu_vendor == "0x41"
    assert facts.memory_bytes == 7_654_321 * 1024
    assert facts.load_average_1min == 3.25
    assert facts.is_virtual is None  # an ARM kernel does not say
    assert facts.kernel == "Linux 5.4.61-android"
    cluster = facts.cluster_of(5)
    assert cluster is not None
    assert cluster.name == "cpu4-6"
    assert facts.cluster_of(99) is None


def test_a_virtual_pc_has_one_cluster_and_says_that_it_is_virtual(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": X86_CPUINFO,
        "etc/os-release": 'NAME="X"\nPRETTY_NAME="Some Linux 12"\n',
        cpu(0, "topology/thread_siblings_list"): "0-1\n",
        **caches(0, (1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2048K"), (3, "Unified", "36M")),
    }
    facts = device_facts(tree(tmp_path, files))
    (cluster,) = facts.clusters
    assert cluster.cores == (0,)
    assert cluster.frequency_hz == 2_200_152_000
    assert cluster.governor is None
    assert facts.is_virtual is True
    assert facts.threads_per_core == 2
    assert facts.os_name == "Some Linux 12"
    assert facts.cpu_model == "Intel(R) Xeon(R) CPU @ 2.20GHz"
    assert (facts.l1d_bytes, facts.l2_bytes, facts.l3_bytes) == (48 << 10, 2 << 20, 36 << 20)


def test_what_is_not_there_is_none_and_never_zero(tmp_path: Path) -> None:
    facts = device_facts(tmp_path)
    told = {name: value for name, value in facts if value is not None}
    assert told == {"clusters": ()}


@pytest.mark.parametrize("value", ["0\n", "", "-1\n", "unknown\n", "9" * 40, "\0\0"])
def test_odd_numbers_are_none(tmp_path: Path, value: str) -> None:
    files = {
        "proc/cpuinfo": f"processor\t: 0\ncpu MHz\t: {value}\n",
        "proc/meminfo": f"MemTotal: {value}\n",
        cpu(0, "cpu_capacity"): value,
        cpu(0, "cpufreq/cpuinfo_max_freq"): value,
        cpu(0, "topology/thread_siblings_list"): "?",
        **caches(0, (1, "Data", value), (2, "Unified", f"{value}K")),
    }
    facts = device_facts(tree(tmp_path, files))
    (cluster,) = facts.clusters
    assert (cluster.capacity, cluster.frequency_hz, cluster.l1d_bytes) == (None, None, None)
    assert (facts.memory_bytes, facts.l2_bytes, facts.threads_per_core) == (None, None, None)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phone(tmp_path_factory.mktemp("noisy"))


@settings(max_examples=60)
@given(noise=st.lists(st.tuples(st.integers(0, 999), st.binary(max_size=80)), max_size=6))
def test_rubbish_in_the_tree_never_raises(noisy: Path, noise: list[tuple[int, bytes]]) -> None:
    everything = sorted(path for path in noisy.rglob("*") if path.is_file())
    victims = {everything[at % len(everything)]: data for at, data in noise}
    before = {path: path.read_bytes() for path in victims}
    for path, data in victims.items():
        path.write_bytes(data)
    try:
        facts = device_facts(noisy)
    finally:
        for path, data in before.items():
            path.write_bytes(data)
    assert DeviceFacts.model_validate_json(facts.model_dump_json()) == facts


def test_this_computer_is_described_and_not_named() -> None:
    facts = device_facts()
    assert facts.core_count is not None
    assert facts.usable_cores
    assert facts.kernel
    assert facts.architecture
    assert DeviceFacts.model_validate_json(facts.model_dump_json()) == facts
    name = socket.gethostname()
    assert len(name) < 4 or f'"{name}"' not in facts.model_dump_json()


def test_hosts_are_told_apart(tmp_path: Path) -> None:
    first = device_facts(tree(tmp_path / "a", {"etc/machine-id": "1"})).host_sha256
    second = device_facts(tree(tmp_path / "b", {"etc/machine-id": "2"})).host_sha256
    assert first is not None
    assert second is not None
    assert first != second


def test_the_runtime_is_known_by_the_library_that_computes() -> None:
    facts = litert_facts()
    assert facts.name == "litert"
    assert facts.version is not None
    assert facts.version[0].isdigit()
    assert facts.library is not None
    assert facts.library_sha256 is not None


def test_a_runtime_that_is_not_there_is_described_by_none(tmp_path: Path) -> None:
    facts = runtime_facts("nothing", distribution="no-such-distribution", library=tmp_path / "lib.so", package="none")
    assert (facts.version, facts.library, facts.library_sha256, facts.package_version) == (None, "lib.so", None, None)
    assert provenance.find_library("no_such_module", ("*",)) is None
    assert provenance.find_library("no_such_module.inner", ("*",)) is None


def test_a_library_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"x" * 3_000_000)
    assert provenance.file_sha256(tmp_path / "lib.so") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@given(cores=st.sets(st.integers(0, 300), min_size=1))
def test_core_lists_read_back(cores: set[int]) -> None:
    assert core_list(cluster_name(tuple(cores)).removeprefix("cpu")) == tuple(sorted(cores))


def test_the_examples_hold() -> None:
    done = doctest.testmod(provenance)
    assert done.attempted > 0
    assert done.failed == 0
