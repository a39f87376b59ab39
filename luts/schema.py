"""What a table (LUT) holds: frozen records, and nothing that reads, writes or computes.

A table is a header and entries. The header says on what and how everything was measured; what differs between sets of
entries (delegate, threads, core cluster) is a :class:`Setting`, which every entry carries and for which the header
holds the floor, the calibration and the discrepancy. Reading and writing are in :mod:`luts.storage`; the published
form is ``lut.schema.json`` beside this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luts.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from luts.lookup import CostTable
    from luts.predict import Prediction
    from op_models.graph import Graph

FORMAT = "lut"
VERSION = 1
CONTEXTS = ("hot", "cold", "far")
# Sources of a discrepancy: shipped with the program, or learnt from measured networks.
DISCREPANCY_SOURCES = ("prior", "networks")
# What whole networks deviated from their sums before anything was learnt about a device: one standard deviation,
# relative. From 34 public float32 networks and 42 of one search space on one computer; see luts.calibrate.
PRIOR_RELATIVE_SD = 0.03

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """How the operations of a set of entries were executed."""

    delegate: str
    threads: int
    core_cluster: str

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return f"delegate {self.delegate}, {self.threads} thread{plural}, core cluster {self.core_cluster}"


@dataclass(frozen=True, slots=True)
class Floor:
    """Cost of invoking an empty model once, in microseconds: what every network pays besides its operations."""

    latency_us: float
    latency_us_low: float
    latency_us_high: float


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """How far a network's cost lies from the sum of its operations, as a relative standard deviation.

    ``dof`` are the degrees of freedom of the estimate, None for a value taken as known (the shipped prior).
    ``networks`` were used to learn it; ``model_sha256s`` names them so that they are never scored.
    """

    relative_sd: float
    dof: float | None
    networks: int
    source: str
    model_sha256s: tuple[str, ...] = ()


PRIOR_DISCREPANCY = Discrepancy(relative_sd=PRIOR_RELATIVE_SD, dof=None, networks=0, source="prior")


@dataclass(frozen=True, slots=True)
class Calibration:
    """One factor on every predicted total, fitted on ``networks`` whole networks (95 % interval)."""

    scale: float
    scale_low: float
    scale_high: float
    networks: int
    model_sha256s: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SettingHeader:
    """What the table knows about one setting as a whole."""

    setting: Setting
    floor: Floor | None = None
    discrepancy: Discrepancy = PRIOR_DISCREPANCY
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class PowerSource:
    """Where energy figures come from; simulated ones say so everywhere."""

    meter: str
    simulated: bool
    voltage_uv: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all entries of a table have in common besides the device; unlike ones never share a table."""

    runtime: str
    runtime_version: str
    binary_sha256: str | None
    statistic: str
    clock: str
    power: PowerSource | None = None


@dataclass(frozen=True, slots=True)
class DeviceHeader:
    """The measured device.

    ``private_cache_bytes`` is one core's own cache, ``shared_cache_bytes`` what lies between it and memory: they decide
    what the contexts mean. ``facts`` hold whatever else was told.
    """

    name: str | None = None
    cpu: str | None = None
    soc: str | None = None
    os_build: str | None = None
    governor: str | None = None
    private_cache_bytes: int | None = None
    shared_cache_bytes: int | None = None
    facts: tuple[tuple[str, Scalar], ...] = ()


@dataclass(frozen=True, slots=True)
class RunSource:
    """A run that entries came from."""

    run_id: str
    plan_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """Where a table comes from. ``created_by`` names the tool and its version."""

    created_by: str
    device: DeviceHeader
    conditions: Conditions
    settings: tuple[SettingHeader, ...]
    runs: tuple[RunSource, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """The measured cost of one operation in one context.

    Latencies are microseconds an execution, with a 95 % interval; ``latency_us_replicates`` are the estimate on
    resampled rounds, where equal positions of the entries of one run are the same resample (so that sums of them are
    resamples of the sum). ``fixed_us`` is the part of an op model's time that does not grow with the number of copies.
    Energy is per execution.
    """

    key: str
    context: str
    setting: Setting
    n_values: tuple[int, ...]
    latency_us: float
    latency_us_low: float
    latency_us_high: float
    latency_us_replicates: tuple[float, ...]
    fixed_us: float | None
    method: str
    rounds: int
    invocations: int
    flags: tuple[str, ...]
    run_ids: tuple[str, ...]
    energy_uj: float | None = None
    energy_uj_low: float | None = None
    energy_uj_high: float | None = None
    charge_uah: float | None = None
    charge_uah_low: float | None = None
    charge_uah_high: float | None = None
    power_simulated: bool | None = None

    @property
    def relative_half_width(self) -> float:
        """Half the interval over the latency; infinite where the latency is not positive."""
        if not self.latency_us > 0:
            return math.inf
        return (self.latency_us_high - self.latency_us_low) / 2 / self.latency_us


@dataclass(frozen=True, slots=True)
class FailedEntry:
    """An operation that was tried and could not be measured, in one context or (None) at all."""

    key: str
    context: str | None
    setting: Setting
    reason: str
    run_id: str


@dataclass(frozen=True, slots=True)
class ElpNasOperation:
    """One of the thesis' operations in a chain of ``n`` copies, its time divided by ``n``.

    ``latency_us_mean_wall`` is the thesis' statistic (the mean of ``runs`` wall-clock invocations),
    ``latency_us_level`` this project's.
    """

    name: str
    setting: Setting
    n: int
    runs: int
    latency_us_mean_wall: float
    latency_us_level: float
    run_id: str


@dataclass(frozen=True, slots=True)
class Lut:
    """A table: its header, its entries, and what was tried in vain. Immutable; look-ups are prepared once a setting."""

    header: Header
    entries: tuple[Entry, ...]
    failed: tuple[FailedEntry, ...] = ()
    elp_nas: tuple[ElpNasOperation, ...] = ()
    _tables: dict[Setting, CostTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings for which there are entries, in the header's order."""
        return tuple(header.setting for header in self.header.settings)

    def setting(self, *, delegate: str | None = None, threads: int | None = None, core_cluster: str | None = None) -> Setting:
        """The one setting that matches what is given. Raises :class:`~luts.errors.SettingError` for none or several."""
        wanted = {"delegate": delegate, "threads": threads, "core_cluster": core_cluster}
        asked = {name: value for name, value in wanted.items() if value is not None}
        matching = [setting for setting in self.settings if all(getattr(setting, name) == value for name, value in asked.items())]
        if len(matching) != 1:
            said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.items())
            raise SettingError(said, [str(setting) for setting in self.settings], len(matching))
        return matching[0]

    def setting_header(self, setting: Setting) -> SettingHeader:
        """Floor, discrepancy and calibration of one setting. Raises :class:`~luts.errors.SettingError`."""
        for header in self.header.settings:
            if header.setting == setting:
                return header
        raise SettingError(str(setting), [str(known) for known in self.settings], 0)

    def table(self, *, delegate: str | None = None, threads: int | None = None, core_cluster: str | None = None) -> CostTable:
        """The cost model of one setting; without arguments, of the only one. Prepared at the first call and kept."""
        setting = self.setting(delegate=delegate, threads=threads, core_cluster=core_cluster)
        table = self._tables.get(setting)
        if table is None:
            from luts.lookup import CostTable  # at first use: reading a table's header needs no arrays

            table = self._tables[setting] = CostTable(self, setting)
        return table

    def cost(self, network: Graph | Path | str, *, partial: bool = False) -> Prediction:
        """Predicted cost of a network on the only setting of this table; see :func:`luts.predict.predict`."""
        from luts.predict import predict

        return predict(network, self, partial=partial)
