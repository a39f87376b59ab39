"""Finds measurements in a table: exact keys, the nearest ones for a miss, coverage, and networks in bulk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luts.errors import RequestError, UnknownOpError
from luts.intervals import Z_975, Floats, discrepancy_half_width, prediction_interval
from luts.schema import CONTEXTS, Entry, Lut, Setting, SettingHeader
from op_models.arrange import CacheSizes
from op_models.errors import SpecError
from op_models.locality import footprints_bytes, mixture
from op_models.spec import OpSpec, TensorSpec

if TYPE_CHECKING:
    from op_models.spaces.base import CountMatrix

# Networks that are added up at a time: bounds the memory that a bulk prediction takes besides its matrix.
_CHUNK = 1 << 15

__all__ = ["CostTable", "Costs", "Coverage", "Miss"]


@dataclass(frozen=True, slots=True)
class Miss:
    """An operation that a table lacks: how often it was asked for, the measured keys most like it, nearest first.

    ``reason`` tells why an attempt to measure it failed, where there was one.
    """

    key: str
    count: int
    nearest: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the asked operations a table holds; ``coverage_frac`` is the share, repeats counted."""

    coverage_frac: float
    misses: tuple[Miss, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """Predicted latencies of many networks, shape (n,), in microseconds; the interval is None where not asked for."""

    latency_us: npt.NDArray[np.floating]
    latency_us_low: npt.NDArray[np.floating] | None = None
    latency_us_high: npt.NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """The table as arrays, a row a key.

    ``steps`` has shape (3, k): hot, cold - hot and far - cold, so that a network's cost is steps[0] + a * steps[1] +
    b * steps[2], summed. ``replicates`` are their resamples (3, k, R); ``spread`` (3, k) is a standard deviation that
    stands in for entries that have no resamples and is 0 for those that have.
    """

    index: dict[str, int]
    steps: Floats
    replicates: Floats
    spread: Floats
    flags: tuple[tuple[str, ...], ...]


class CostTable:
    """The cost model that one setting of a table is: hot + a * (cold - hot) + b * (far - cold), summed over operations.

    a and b follow from the network's footprint (:func:`op_models.locality.mixture`). Made by
    :meth:`luts.schema.Lut.table`. In a context that an operation was not measured in it costs what it costs in the
    nearest one.
    """

    def __init__(self, lut: Lut, setting: Setting) -> None:
        self.lut = lut
        self.setting = setting
        self.header: SettingHeader = lut.setting_header(setting)
        self._entries: dict[tuple[str, str], Entry] = {
            (entry.key, entry.context): entry for entry in lut.entries if entry.setting == setting
        }
        self.keys: tuple[str, ...] = tuple(dict.fromkeys(key for key, _ in self._entries))
        self.rows = self._prepared()
        self._features: dict[str, _Features | None] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self.rows.index

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, key: str, context: str = "hot") -> Entry:
        """The measurement of one operation in one context.

        Raises :class:`~luts.errors.UnknownOpError` (with the nearest key) where there is none.
        """
        entry = self._entries.get((key, context))
        if entry is None:
            near = self.nearest(key, 1)
            raise UnknownOpError(key, near[0] if near else None, reason=self.failure(key))
        return entry

    def contexts(self, key: str) -> tuple[str, ...]:
        """The contexts in which a key was measured."""
        return tuple(context for context in CONTEXTS if (key, context) in self._entries)

    def failure(self, key: str) -> str | None:
        """Why measuring a key failed, if it was tried in vain."""
        for failed in self.lut.failed:
            if failed.key == key and failed.setting == self.setting:
                return failed.reason
        return None

    @property
    def scale(self) -> float:
        """The calibration's factor, 1 where nothing was fitted."""
        return 1.0 if self.header.calibration is None else self.header.calibration.scale

    @property
    def floor_us(self) -> float:
        """What one invocation costs besides its operations, 0 where it was not measured."""
        return 0.0 if self.header.floor is None else self.header.floor.latency_us

    @property
    def discrepancy_log(self) -> float:
        """Half-width of the discrepancy's 95 % interval for one new network, on the log scale."""
        return discrepancy_half_width(self.header.discrepancy, self.header.calibration)

    def nearest(self, key: str, n: int = 3) -> tuple[str, ...]:
        """The ``n`` measured keys most like ``key``, nearest first.

        The same operators, types and options come first, by the distance of their shapes on the log scale; then the
        same operators; only where there are none, keys of similar spelling.
        """
        if self._features is None:
            self._features = {known: _features(known) for known in self.keys}
        wanted = _features(key)
        ranked = []
        if wanted is not None:
            for known, features in self._features.items():
                if features is not None and features.operators == wanted.operators and known != key:
                    ranked.append((features.distance(wanted), known))
        if ranked:
            return tuple(known for _, known in sorted(ranked)[:n])
        from difflib import get_close_matches  # slow to import and rarely needed

        return tuple(get_close_matches(key, [known for known in self.keys if known != key], n=n, cutoff=0.3))

    def misses(self, keys: Iterable[str]) -> tuple[Miss, ...]:
        """What of ``keys`` the table lacks, each once, with its count and nearest keys, in order of appearance."""
        counts: dict[str, int] = {}
        for key in keys:
            if key not in self.rows.index:
                counts[key] = counts.get(key, 0) + 1
        return tuple(Miss(key, count, self.nearest(key), self.failure(key)) for key, count in counts.items())

    def coverage(self, keys: Iterable[str]) -> Coverage:
        """The share of ``keys`` that the table holds (1 for no keys), and the misses."""
        asked = list(keys)
        misses = self.misses(asked)
        missing = sum(miss.count for miss in misses)
        return Coverage(1.0 if not asked else 1 - missing / len(asked), misses)

    def unknown(self, misses: Sequence[Miss]) -> UnknownOpError:
        """The error for a network with misses, to be raised by the caller."""
        first = misses[0]
        return UnknownOpError(first.key, first.nearest[0] if first.nearest else None, reason=first.reason, misses=misses)

    @property
    def caches(self) -> CacheSizes:
        """The caches that the contexts refer to; what the table does not tell is assumed."""
        device, assumed = self.lut.header.device, CacheSizes()
        private = device.private_cache_bytes or assumed.private_bytes
        shared = device.shared_cache_bytes or assumed.shared_bytes
        return CacheSizes(private, shared, packed=self.setting.delegate != "none")

    def costs(
        self,
        matrix: CountMatrix,
        *,
        intervals: bool = False,
        dtype: type[np.float64] | type[np.float32] = np.float64,
    ) -> Costs:
        """Latencies of many networks at once: the sums that :func:`luts.predict.predict` makes one by one.

        ``matrix.counts`` has shape (n, k). With ``dtype=numpy.float32`` the sums are computed in float32 (fast where
        the matrix is float32 already). The cost is NaN where ``matrix.valid`` is False. Raises
        :class:`~luts.errors.UnknownOpError` where a network has an operation that the table lacks; a key with no count
        at all may be missing.
        """
        counts = matrix.counts
        if counts.ndim != 2 or counts.shape[1] != len(matrix.keys):
            raise RequestError(f"a count matrix of shape {counts.shape} does not fit its {len(matrix.keys)} operations")
        where = np.array([self.rows.index.get(key, -1) for key in matrix.keys], dtype=np.intp)
        absent = np.flatnonzero(where < 0)
        if absent.size:
            used = absent[np.any(counts[:, absent] != 0, axis=0)]
            if used.size:
                raise self.unknown(self.misses(matrix.keys[int(column)] for column in used))
        found = [
            self._costs_of(matrix[start : start + _CHUNK], where, intervals, dtype)
            for start in range(0, max(len(counts), 1), _CHUNK)
        ]
        if len(found) == 1:
            return found[0]
        latency, low, high = (
            np.concatenate([getattr(part, name) for part in found]) if intervals or name == "latency_us" else None
            for name in ("latency_us", "latency_us_low", "latency_us_high")
        )
        assert latency is not None
        return Costs(latency, low, high)

    def _costs_of(
        self, matrix: CountMatrix, where: npt.NDArray[np.intp], intervals: bool, dtype: type[np.floating[Any]]
    ) -> Costs:
        rows, scale = self.rows, self.scale
        known = where >= 0
        shares = mixture(footprints_bytes(matrix.keys, matrix.counts), self.caches)
        weights = np.stack([np.ones(len(matrix)), *shares], axis=1)  # (n, 3)
        steps = (scale * rows.steps[:, where] * known).T.astype(dtype)  # (k, 3)
        totals = ((matrix.counts.astype(dtype, copy=False) @ steps) * weights.astype(dtype)).sum(axis=1)
        totals += dtype(scale * self.floor_us)
        totals[~matrix.valid] = np.nan  # a network that is none has no cost, and 0 would look like the best of all
        if not intervals:
            return Costs(totals)
        counts = matrix.counts[:, known].astype(np.float64)
        chosen = where[known]
        replicates = np.zeros((len(matrix), rows.replicates.shape[2]))
        variance = np.zeros(len(matrix))
        for step in range(3):
            share = weights[:, step]
            replicates += share[:, None] * (counts @ (scale * rows.replicates[step, chosen]))
            variance += share**2 * (counts**2 @ (scale * rows.spread[step, chosen]) ** 2)
        middle = totals.astype(np.float64)
        low, high = prediction_interval(middle, replicates, np.sqrt(variance), self.discrepancy_log)
        return Costs(totals, low.astype(dtype), high.astype(dtype))

    def _prepared(self) -> _Rows:
        size = len(self.keys)
        width = max((len(entry.latency_us_replicates) for entry in self._entries.values()), default=0)
        values = np.zeros((3, size))
        replicates = np.zeros((3, size, width))
        spread = np.zeros((3, size))
        flags: list[tuple[str, ...]] = []
        for row, key in enumerate(self.keys):
            measured = [self._entries.get((key, context)) for context in CONTEXTS]
            before: Entry | None = None
            for column, entry in enumerate(_filled(measured)):
                values[column, row] = entry.latency_us
                replicates[column, row] = entry.latency_us_replicates or entry.latency_us
                if not entry.latency_us_replicates and entry is not before:
                    spread[column, row] = (entry.latency_us_high - entry.latency_us_low) / 2 / Z_975
                before = entry
            flags.append(tuple(dict.fromkeys(flag for entry in measured if entry is not None for flag in entry.flags)))
        return _Rows(
            index={key: row for row, key in enumerate(self.keys)},
            steps=np.concatenate([values[:1], np.diff(values, axis=0)]),
            replicates=np.concatenate([replicates[:1], np.diff(replicates, axis=0)]),
            spread=spread,
            flags=tuple(flags),
        )


def _filled(measured: Sequence[Entry | None]) -> list[Entry]:
    """The entry of each context, or of the nearest one that was measured: a smaller one first, else a larger."""
    found = [entry for entry in measured if entry is not None]
    last = found[0]
    return [last := entry if entry is not None else last for entry in measured]


@dataclass(frozen=True, slots=True)
class _Features:
    """What makes two operations alike: operators first, then types and options, then the sizes of their shapes."""

    operators: tuple[str, ...]
    details: tuple[str, ...]
    log_sizes: tuple[float, ...]

    def distance(self, other: _Features) -> tuple[int, float]:
        """Smaller is nearer; details that differ count before any size."""
        differing = sum(a != b for a, b in zip(self.details, other.details, strict=False))
        differing += abs(len(self.details) - len(other.details))
        if len(self.log_sizes) != len(other.log_sizes):
            return differing, math.inf
        return differing, sum(abs(a - b) for a, b in zip(self.log_sizes, other.log_sizes, strict=True))


def _features(key: str) -> _Features | None:
    """Features of a key, None for a text that is no operation key."""
    try:
        spec = OpSpec.from_key(key)
    except SpecError:
        return None
    details: list[str] = []
    sizes: list[float] = []
    for step in spec.steps:
        details.extend(f"{name}={value}" for name, value in step.options)
        for tensor in (*step.inputs, *step.outputs):
            if isinstance(tensor, TensorSpec):
                details.append(f"{tensor.role} {tensor.dtype} {tensor.quant} {len(tensor.shape)}-d")
                sizes.extend(math.log(max(size, 1)) for size in tensor.shape)
                if tensor.values is not None:
                    details.append(str(tensor.values))
            else:
                details.append(str(tensor))
    return _Features(tuple(step.op for step in spec.steps), tuple(details), tuple(sizes))
