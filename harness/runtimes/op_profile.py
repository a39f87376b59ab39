"""In-network operator profiles: what each operator took while its whole network ran, by LiteRT's own profiler.

A table of op models says what an operation costs by itself; the profile says what it cost in place.
:func:`profile_model` measures (LiteRT's own kernels, one row an operator of the file, in a process of its own),
:func:`group_timings` sums the rows as :func:`op_models.graph.groups` groups the operators, and
:func:`harness.runtimes.op_compare.compare` sets them against a table.

``python -m harness.runtimes.op_profile MODEL [--table operations.json|LUT.json]`` prints either. The profiler reads the
wall clock in whole microseconds and costs a fraction of one for every operator, so figures below 2 us are rough.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from harness.errors import DeviceError, ExitCode, HarnessError, ModelRunError
from harness.record import Record
from op_models import graph as graphs
from op_models.graph import Graph

if TYPE_CHECKING:
    import argparse

SUPPORTED_VERSION = "2.3."
Kernels = Literal["builtin", "reference"]


class ProfileUnavailableError(DeviceError):
    """There is no profiler here that could be believed: another version of LiteRT, a crash, a changed interface."""

    exit_code = ExitCode.NO_SUCH_HARDWARE

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no operator profile: {reason}")


class ProfileMismatchError(HarnessError):
    """A profile and a network (or a table) that do not belong together."""

    exit_code = ExitCode.BAD_REQUEST

    def __init__(self, *, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: {reason}")


class OperatorTiming(Record):
    """One operator of the file. ``quiet`` is the mean over the runs in which nothing disturbed it."""

    operator: int
    name: str
    latency_us_mean: float
    latency_us_quiet: float
    runs: int


class OpProfile(Record):
    """What one network's operators took, in the order of execution, and under which conditions."""

    format: Literal["op-profile"] = "op-profile"
    version: Literal[1] = 1
    model: str
    model_sha256: str
    runtime: str = "litert"
    runtime_version: str
    kernels: Kernels
    threads: int
    seed: int
    warmups: int
    runs: int
    clock: Literal["wall"] = "wall"
    network_us_mean: float
    network_us_quiet: float
    operators: tuple[OperatorTiming, ...]


def profile_model(
    model: Path | str,
    *,
    kernels: Kernels = "builtin",
    threads: int = 1,
    runs: int = 50,
    warmups: int = 3,
    seed: int = 0,
    core: int | None = None,
    timeout_s: float = 300.0,
) -> OpProfile:
    """Profiles a network in a process of its own, pinned to ``core``.

    Raises :class:`~op_models.errors.OpModelError` for a file that cannot be read, :class:`ModelRunError` for a network
    that this runtime cannot run, and :class:`ProfileUnavailableError` where the profiler cannot be had.
    """
    model = Path(model)
    network = graphs.read(model)  # a bad file is told from a bad runtime here
    version, library = _library()
    options = {
        "library": library,
        "kernels": kernels,
        "threads": threads,
        "runs": runs,
        "warmups": warmups,
        "seed": seed,
    }
    command = [sys.executable, "-m", "harness.runtimes.litert_c", str(model)]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += [] if core is None else ["--core", str(core)]
    answer = _answer(command, timeout_s, str(model))
    operators = tuple(_timing(*row) for row in answer["operators"])
    return OpProfile(
        model=model.name,
        model_sha256=network.sha256,
        runtime_version=version,
        kernels=kernels,
        threads=threads,
        seed=seed,
        warmups=warmups,
        runs=runs,
        network_us_mean=float(np.mean(answer["invoke_us"])),
        network_us_quiet=quiet_mean(answer["invoke_us"]),
        operators=operators,
    )


def _library() -> tuple[str, Path]:
    """Version of the installed LiteRT and its shared library. Raises :class:`ProfileUnavailableError`."""
    try:
        version = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError as error:
        raise ProfileUnavailableError(reason="ai-edge-litert is not installed") from error
    if not version.startswith(SUPPORTED_VERSION):
        raise ProfileUnavailableError(
            reason=f"the profiler's binary interface is known for ai-edge-litert {SUPPORTED_VERSION}*, found {version}"
        )
    import ai_edge_litert

    for suffix in (".so", ".dylib"):
        library = Path(ai_edge_litert.__path__[0]) / f"libLiteRt{suffix}"
        if library.exists():
            return version, library
    raise ProfileUnavailableError(reason=f"ai-edge-litert {version} comes without its shared library on this system")


def _answer(command: Sequence[str], timeout_s: float, model: str) -> dict[str, Any]:
    environment = dict(os.environ)
    # The child must find this package where this process found it, also when it is not installed.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProfileUnavailableError(reason=f"profiling {model} took longer than {timeout_s:g} s") from error
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        last = f"; its last words: {said[-1]}" if said else ""
        raise ProfileUnavailableError(reason=f"the profiling process ended with {done.returncode}{last}") from error
    if "failed" in answer:
        # The first complaint names the operator; those after it say where the library gave up.
        complaint = next((line for line in said if line.startswith("ERROR")), None)
        if complaint is not None:
            raise ModelRunError(model=model, reason=complaint.removeprefix("ERROR: "))
        raise ProfileUnavailableError(reason=answer["failed"])
    return dict(answer)


def _timing(operator: int, name: str, elapsed_us: Sequence[int]) -> OperatorTiming:
    return OperatorTiming(
        operator=operator,
        name=name,
        latency_us_mean=float(np.mean(elapsed_us)),
        latency_us_quiet=quiet_mean(elapsed_us),
        runs=len(elapsed_us),
    )


def quiet_mean(elapsed_us: Sequence[float]) -> float:
    """Mean of the runs that nothing disturbed: those within 5 % and one microsecond of the lower quartile.

    The extra microsecond keeps the mean of short operators unbiased, whose whole-microsecond readings scatter by one.

    >>> quiet_mean([3, 4, 3, 4, 8000])
    3.5
    """
    values = np.asarray(elapsed_us, dtype=np.float64)
    limit = np.quantile(values, 0.25) * 1.05 + 1.0
    return float(values[values <= limit].mean())


# --- per group -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupTiming:
    """One executed group of a network: its key, its operators, and the sum of what they took in place."""

    key: str
    operators: tuple[int, ...]
    latency_us_mean: float
    latency_us_quiet: float


def group_timings(profile: OpProfile, network: Graph) -> tuple[GroupTiming, ...]:
    """The rows of a profile, summed over the groups of its network, in order of execution.

    Raises :class:`ProfileMismatchError` where profile and network are not of one file.
    """
    if profile.model_sha256 != network.sha256:
        raise ProfileMismatchError(what=profile.model, reason=f"the profile is not of {network.name}: other content")
    rows = {row.operator: row for row in profile.operators}
    for index, row in rows.items():
        expected = network.operators[index].name if 0 <= index < len(network.operators) else None
        if expected is None or (row.name != expected and not expected.startswith("CUSTOM:")):
            raise ProfileMismatchError(what=profile.model, reason=f"operator {index} is {expected}, profiled as {row.name}")
    timings = []
    for group in network.groups:
        missing = [index for index in group.operators if index not in rows]
        if missing:
            raise ProfileMismatchError(
                what=profile.model, reason=f"no row for {network.operators[missing[0]].name} at {missing[0]}"
            )
        timings.append(
            GroupTiming(
                key=group.spec.key,
                operators=group.operators,
                latency_us_mean=sum(rows[index].latency_us_mean for index in group.operators),
                latency_us_quiet=sum(rows[index].latency_us_quiet for index in group.operators),
            )
        )
    return tuple(timings)


# --- command ---------------------------------------------------------------------------------------------------


def report(profile: OpProfile, timings: Sequence[GroupTiming]) -> str:
    """A profile as text: a row an executed group, and the totals by operator."""
    total = sum(timing.latency_us_quiet for timing in timings)
    how = f"LiteRT {profile.runtime_version}, {profile.kernels} kernels, threads: {profile.threads}, runs: {profile.runs}"
    lines = [
        f"{profile.model}: {len(timings)} groups, {total:,.0f} us in them, {profile.network_us_quiet:,.0f} us a run",
        f"({how})",
        "",
        f"{'us':>10} {'mean us':>10} {'share':>6}  operation",
    ]
    lines += [
        f"{t.latency_us_quiet:10.1f} {t.latency_us_mean:10.1f} {_share(t.latency_us_quiet, total):>6}  {t.key}" for t in timings
    ]
    names: Counter[str] = Counter()
    spent: dict[str, float] = {}
    for row in profile.operators:
        names[row.name] += 1
        spent[row.name] = spent.get(row.name, 0.0) + row.latency_us_quiet
    lines += ["", f"{'us':>10} {'share':>6} {'count':>6}  operator"]
    lines += [
        f"{us:10.1f} {_share(us, total):>6} {names[name]:6d}  {name}"
        for name, us in sorted(spent.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole > 0 else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see ``--help``."""
    import argparse

    from op_models.console import with_output

    parser = argparse.ArgumentParser(
        prog="python -m harness.runtimes.op_profile",
        description="Profiles the operators of a network while it runs, with LiteRT's own profiler and kernels.",
        epilog="A table measured with XNNPACK describes other kernels: compare with one of the delegate 'none'.",
    )
    parser.add_argument("model", type=Path, help="a .tflite file")
    parser.add_argument("--table", type=Path, help="set against an operation table of a run, or a LUT")
    parser.add_argument("--kernels", choices=get_args(Kernels), default="builtin", help="default: builtin")
    parser.add_argument("--threads", type=_positive, default=1, help="default: 1")
    parser.add_argument("--runs", type=_positive, default=50, help="profiled runs (default: 50)")
    parser.add_argument("--warmups", type=_positive, default=3, help="runs before them (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the input data (default: 0)")
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="give up after so long (default: 300)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    return with_output(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    from harness.runtimes import op_compare
    from op_models.errors import OpModelError

    try:
        profile = profile_model(
            chosen.model,
            kernels=chosen.kernels,
            threads=chosen.threads,
            runs=chosen.runs,
            warmups=chosen.warmups,
            seed=chosen.seed,
            core=chosen.core,
            timeout_s=chosen.timeout,
        )
        network = graphs.read(chosen.model)
        timings = group_timings(profile, network)
        comparison = None
        if chosen.table is not None:
            table, conditions = op_compare.read_table(chosen.table)
            if conditions.get("delegate", "none") != "none":
                print(f"note: the table was measured with {conditions['delegate']}, the profile without", file=sys.stderr)
            comparison = op_compare.compare(timings, table, mixture=_mixture(network), model=profile.model)
    except OpModelError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_REQUEST
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if chosen.json:
        content: dict[str, Any] = profile.model_dump(mode="json") | {"groups": [asdict(timing) for timing in timings]}
        if comparison is not None:
            content["comparison"] = asdict(comparison)
        print(json.dumps(content, indent=1))
    else:
        print(report(profile, timings) if comparison is None else op_compare.comparison_report(comparison))
    return ExitCode.DONE


def _mixture(network: Graph) -> tuple[float, float]:
    """How far a network works from a core of this computer, as :func:`op_models.locality.mixture` tells."""
    from harness.provenance import device_facts
    from op_models import locality
    from op_models.arrange import CacheSizes

    facts, defaults = device_facts(), CacheSizes()
    caches = CacheSizes(facts.l2_bytes or defaults.private_bytes, facts.l3_bytes or defaults.shared_bytes)
    cold, far = locality.mixture(locality.graph_footprint_bytes(network), caches)
    return float(cold), float(far)


def _positive(text: str) -> int:
    import argparse

    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
