"""Reads the operation table that a run ends with, as the harness derived it (``derived/operations.json``)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luts import fields
from luts.errors import LutFileError
from luts.fields import FieldError
from luts.schema import (
    CONTEXTS,
    Conditions,
    DeviceHeader,
    ElpNasOperation,
    Entry,
    FailedEntry,
    Floor,
    PowerSource,
    RunSource,
    Scalar,
    Setting,
)

T = TypeVar("T")

FORMAT = "operation-table"
VERSION = 1
_DEVICE_FIELDS = ("name", "cpu", "soc", "os_build", "governor", "private_cache_bytes", "shared_cache_bytes")
# For a fact that the device did not tell but that a table must be told by.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RunTable:
    """The operation table of one run, as the harness derived it."""

    path: str
    run: RunSource
    device: DeviceHeader
    conditions: Conditions
    setting: Setting
    floor: Floor | None
    entries: tuple[Entry, ...]
    failed: tuple[FailedEntry, ...]
    elp_nas: tuple[ElpNasOperation, ...]
    references_us: tuple[float | None, ...] = ()
    """Time of the reference model while each entry was measured; empty where the run does not tell."""


def read_run(path: Path | str) -> RunTable:
    """Read the operation table of a run directory (or the ``operations.json`` itself).

    Fields that a table does not need are passed over. Raises :class:`~luts.errors.LutFileError`.
    """
    given = Path(path)
    file = given / "derived" / "operations.json" if given.is_dir() else given
    if given.is_dir() and not file.exists():
        reason = f"holds no derived/operations.json; `python -m harness.profile --resume {shlex.quote(str(given))}` makes it"
        raise LutFileError(str(given), reason)
    document = fields.read_json(file)
    with fields.document(str(file)):
        if type(document) is not dict or document.get("format") != FORMAT:
            raise FieldError("format", f"expected {FORMAT!r}: this is no operation table of a run")
        if document.get("version") != VERSION or type(document["version"]) is not int:
            found = fields.shown(document.get("version"))
            raise FieldError("version", f"is {found}, but this program reads version {VERSION}")
        return _run_table(document, str(file), given)


def _run_table(document: Mapping[str, Any], path: str, given: Path) -> RunTable:
    run_id = fields.text(document, "run_id")
    source = _object(document, "conditions")
    with fields.within("conditions"):
        setting = Setting(
            delegate=fields.text(source, "delegate"),
            threads=fields.whole(source, "threads", at_least=1),
            core_cluster=fields.text_or_none(source, "core_cluster") or UNKNOWN,
        )
        conditions = Conditions(
            runtime=fields.text(source, "runtime"),
            runtime_version=fields.text_or_none(source, "runtime_version") or UNKNOWN,
            binary_sha256=fields.text_or_none(source, "binary_sha256"),
            statistic=fields.text(source, "statistic"),
            clock=fields.text(source, "clock"),
            power=_power(source),
        )

    def entry(item: Mapping[str, Any]) -> Entry:
        return _entry(item, setting, run_id)

    def failed(item: Mapping[str, Any]) -> FailedEntry:
        context = None if item.get("context") is None else fields.one_of(item, "context", CONTEXTS)
        return FailedEntry(fields.text(item, "key"), context, setting, fields.text(item, "reason"), run_id)

    def elp_nas(item: Mapping[str, Any]) -> ElpNasOperation:
        return ElpNasOperation(
            name=fields.text(item, "name"),
            setting=setting,
            n=fields.whole(item, "n", at_least=1),
            runs=fields.whole(item, "runs"),
            latency_us_mean_wall=fields.number(item, "latency_us_mean_wall", at_least=0),
            latency_us_level=fields.number(item, "latency_us_level", at_least=0),
            run_id=run_id,
        )

    return RunTable(
        path=path,
        run=RunSource(run_id, fields.text_or_none(document, "plan_sha256") or _plan_sha256(given)),
        device=_device(_object(document, "device"), source),
        conditions=conditions,
        setting=setting,
        floor=_floor(document),
        entries=_each(document, "entries", entry),
        failed=_each(document, "failed", failed, optional=True),
        elp_nas=_each(document, "elp_nas", elp_nas, optional=True),
        references_us=_each(document, "entries", lambda item: fields.number_or_none(item, "reference_us", above=0)),
    )


def _object(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    if type(value) is not dict:
        raise FieldError(name, f"expected an object, found {fields.shown(value)}")
    return value


def _each(
    source: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any]], T], *, optional: bool = False
) -> tuple[T, ...]:
    if optional and source.get(name) is None:
        return ()
    found = []
    for position, item in enumerate(fields.sequence(source, name)):
        with fields.within(f"{name}[{position}]"):
            if type(item) is not dict:
                raise FieldError("", f"expected an object, found {fields.shown(item)}")
            found.append(read(item))
    return tuple(found)


def _plan_sha256(given: Path) -> str | None:
    manifest = given / "manifest.json"
    if not given.is_dir() or not manifest.exists():
        return None
    document = fields.read_json(manifest)
    with fields.document(str(manifest)):
        return fields.text_or_none(document, "plan_sha256") if type(document) is dict else None


def _power(source: Mapping[str, Any]) -> PowerSource | None:
    if source.get("power") is None:
        return None
    inner = _object(source, "power")
    with fields.within("power"):
        simulated = fields.flag_or_none(inner, "simulated")
        if simulated is None:
            raise FieldError("simulated", "is missing; expected true or false")
        voltage = fields.number_or_none(inner, "voltage_uv", above=0)
        return PowerSource(fields.text(inner, "meter"), simulated, voltage)


def _device(source: Mapping[str, Any], conditions: Mapping[str, Any]) -> DeviceHeader:
    used = set(_DEVICE_FIELDS)

    def first(*names: str) -> str:
        used.update(names)
        return next((name for name in names if source.get(name) is not None), names[0])

    # The caches that the op models were laid out for, not what the device tells, decide what the contexts mean.
    caches = ("private_cache_bytes", "shared_cache_bytes")
    source = dict(source) | {name: conditions[name] for name in caches if conditions.get(name) is not None}
    with fields.within("device"):
        return DeviceHeader(
            name=fields.text_or_none(source, "name"),
            cpu=fields.text_or_none(source, first("cpu", "cpu_model")),
            soc=fields.text_or_none(source, "soc"),
            os_build=fields.text_or_none(source, first("os_build", "os_name")),
            governor=fields.text_or_none(source, "governor"),
            # Where it is not told, a core's second level is its own (true of x86 servers and of big ARM cores).
            private_cache_bytes=fields.whole_or_none(source, first("private_cache_bytes", "l2_bytes"), at_least=1),
            shared_cache_bytes=fields.whole_or_none(source, first("shared_cache_bytes", "l3_bytes"), at_least=1),
            facts=tuple(sorted(_flat({name: source[name] for name in source if name not in used}).items())),
        )


def _flat(source: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested facts under dotted names; lists as text."""
    found: dict[str, Scalar] = {}
    for name, value in source.items():
        if type(value) is dict:
            found |= _flat(value, f"{prefix}{name}.")
        elif value is None or type(value) in (str, int, float, bool):
            found[f"{prefix}{name}"] = value
        else:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found


def _floor(document: Mapping[str, Any]) -> Floor | None:
    if document.get("floor_us") is None:
        return None
    middle = fields.number(document, "floor_us")
    return Floor(middle, middle, middle)


def _entry(item: Mapping[str, Any], setting: Setting, run_id: str) -> Entry:
    for name in ("latency_us", "energy_uj", "charge_uah"):
        fields.ordered_interval(item, name)
    return Entry(
        key=fields.text(item, "key"),
        context=fields.one_of(item, "context", CONTEXTS),
        setting=setting,
        n_values=fields.wholes(item, "n_values"),
        latency_us=fields.number(item, "latency_us"),
        latency_us_low=fields.number(item, "latency_us_low"),
        latency_us_high=fields.number(item, "latency_us_high"),
        latency_us_replicates=fields.numbers(item, "latency_us_replicates"),
        fixed_us=fields.number_or_none(item, "fixed_us"),
        method=fields.text(item, "method"),
        rounds=fields.whole(item, "rounds"),
        invocations=fields.whole(item, "invocations"),
        flags=fields.texts(item, "flags"),
        run_ids=(run_id,),
        energy_uj=fields.number_or_none(item, "energy_uj"),
        energy_uj_low=fields.number_or_none(item, "energy_uj_low"),
        energy_uj_high=fields.number_or_none(item, "energy_uj_high"),
        charge_uah=fields.number_or_none(item, "charge_uah"),
        charge_uah_low=fields.number_or_none(item, "charge_uah_low"),
        charge_uah_high=fields.number_or_none(item, "charge_uah_high"),
        power_simulated=fields.flag_or_none(item, "power_simulated"),
    )
