"""Reads and writes table files: strict on the way in, atomic on the way out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from luts import fields
from luts.errors import LutFileError, LutVersionError
from luts.fields import FieldError
from luts.schema import (
    CONTEXTS,
    DISCREPANCY_SOURCES,
    FORMAT,
    VERSION,
    Calibration,
    Conditions,
    DeviceHeader,
    Discrepancy,
    ElpNasOperation,
    Entry,
    FailedEntry,
    Floor,
    Header,
    Lut,
    PowerSource,
    RunSource,
    Scalar,
    Setting,
    SettingHeader,
)

T = TypeVar("T")
# The header's settings by their fields, as an entry writes them.
_Settings = Mapping[tuple[Any, int, Any], Setting]

_TOP = frozenset({"format", "version", "header", "entries", "failed", "elp_nas"})
_HEADER = frozenset({"created_by", "device", "conditions", "settings", "runs"})
_DEVICE = frozenset(DeviceHeader.__slots__)
_CONDITIONS = frozenset({"runtime", "runtime_version", "binary_sha256", "statistic", "clock", "power"})
_POWER = frozenset({"meter", "simulated", "voltage_uv"})
_SETTING = frozenset({"delegate", "threads", "core_cluster"})
_SETTING_HEADER = _SETTING | {"floor", "discrepancy", "calibration"}
_FLOOR = frozenset({"latency_us", "latency_us_low", "latency_us_high"})
_DISCREPANCY = frozenset({"relative_sd", "dof", "networks", "source", "model_sha256s"})
_CALIBRATION = frozenset({"scale", "scale_low", "scale_high", "networks", "model_sha256s"})
_RUN = frozenset({"run_id", "plan_sha256"})
_ENERGY = ("energy_uj", "energy_uj_low", "energy_uj_high", "charge_uah", "charge_uah_low", "charge_uah_high")
_ENTRY = (
    frozenset(
        {
            "key",
            "context",
            "n_values",
            "latency_us",
            "latency_us_low",
            "latency_us_high",
            "latency_us_replicates",
            "fixed_us",
            "method",
            "rounds",
            "invocations",
            "flags",
            "run_ids",
            "power_simulated",
            *_ENERGY,
        }
    )
    | _SETTING
)
_FAILED = _SETTING | {"key", "context", "reason", "run_id"}
_ELP_NAS = _SETTING | {"name", "n", "runs", "latency_us_mean_wall", "latency_us_level", "run_id"}


def load(path: Path | str) -> Lut:
    """Read a table.

    Raises :class:`~luts.errors.LutFileError` (with the location in the document) for a file that is not a valid table
    and :class:`~luts.errors.LutVersionError` for one of another version.
    """
    return parse(fields.read_json(path), str(path))


def parse(document: object, path: str, *, allow_non_finite: bool = False) -> Lut:
    """The table in a parsed JSON document; ``path`` only names it in messages.

    ``allow_non_finite`` lets NaN and infinite latencies pass: only the checker of damaged tables wants them.
    """
    with fields.document(path):
        if type(document) is not dict:
            raise FieldError("", f"expected a table, found {fields.shown(document)}")
        found = document.get("format")
        if found != FORMAT:
            told = "nothing that says so" if found is None else f"a format {fields.shown(found)}"
            raise FieldError("format", f"expected {FORMAT!r}, found {told}")
        if type(document.get("version")) is not int or document["version"] != VERSION:
            raise LutVersionError(path, document.get("version"), VERSION)
        top = fields.record(document, _TOP)
        with fields.within("header"):
            header = _header(top.get("header"))
        settings = [item.setting for item in header.settings]
        known: _Settings = {(item.delegate, item.threads, item.core_cluster): item for item in settings}
        return Lut(
            header=header,
            entries=_entries(top, known, allow_non_finite),
            failed=_each(top, "failed", lambda item: _failed(item, known), optional=True),
            elp_nas=_each(top, "elp_nas", lambda item: _elp_nas(item, known), optional=True),
        )


def _each(source: Mapping[str, Any], name: str, read: Callable[[Any], T], *, optional: bool = False) -> tuple[T, ...]:
    if optional and source.get(name) is None:
        return ()
    found = []
    for position, item in enumerate(fields.sequence(source, name)):
        try:
            found.append(read(item))
        except FieldError as error:
            raise fields.located(f"{name}[{position}]", error) from None
    return tuple(found)


def _header(value: object) -> Header:
    source = fields.record(value, _HEADER)
    with fields.within("device"):
        device = _device(source.get("device"))
    with fields.within("conditions"):
        conditions = _conditions(source.get("conditions"))
    settings = _each(source, "settings", _setting_header)
    if len({item.setting for item in settings}) != len(settings):
        raise FieldError("settings", "names one setting twice")
    return Header(
        created_by=fields.text(source, "created_by"),
        device=device,
        conditions=conditions,
        settings=settings,
        runs=_each(source, "runs", _run),
    )


def _device(value: object) -> DeviceHeader:
    source = fields.record(value, _DEVICE)
    facts = {} if source.get("facts") is None else source["facts"]
    if type(facts) is not dict:
        raise FieldError("facts", f"expected an object, found {fields.shown(facts)}")
    return DeviceHeader(
        name=fields.text_or_none(source, "name"),
        cpu=fields.text_or_none(source, "cpu"),
        soc=fields.text_or_none(source, "soc"),
        os_build=fields.text_or_none(source, "os_build"),
        governor=fields.text_or_none(source, "governor"),
        private_cache_bytes=fields.whole_or_none(source, "private_cache_bytes", at_least=1),
        shared_cache_bytes=fields.whole_or_none(source, "shared_cache_bytes", at_least=1),
        facts=tuple((_fact_name(name), _fact(name, fact)) for name, fact in facts.items()),
    )


def _fact_name(name: str) -> str:
    with fields.within("facts"):
        return fields.text({fields.shown_name(name): name}, fields.shown_name(name))


def _fact(name: str, value: object) -> Scalar:
    with fields.within("facts"):
        where = fields.shown_name(name)
        if value is None or type(value) is bool:
            return value
        if type(value) is str:
            return fields.text({where: value}, where) if value else ""
        if type(value) is int:
            if not -(2**53) < value < 2**53:
                raise FieldError(where, "is a number too large to be used")
            return value
        if type(value) is float:
            return fields.number({where: value}, where)
        raise FieldError(where, f"expected a text, a number, true, false or null, found {fields.shown(value)}")


def _conditions(value: object) -> Conditions:
    source = fields.record(value, _CONDITIONS)
    power = None
    if source.get("power") is not None:
        with fields.within("power"):
            inner = fields.record(source["power"], _POWER)
            simulated = fields.flag_or_none(inner, "simulated")
            if simulated is None:
                raise FieldError("simulated", "is missing; expected true or false")
            power = PowerSource(
                meter=fields.text(inner, "meter"),
                simulated=simulated,
                voltage_uv=fields.number_or_none(inner, "voltage_uv", above=0),
            )
    return Conditions(
        runtime=fields.text(source, "runtime"),
        runtime_version=fields.text(source, "runtime_version"),
        binary_sha256=fields.text_or_none(source, "binary_sha256"),
        statistic=fields.text(source, "statistic"),
        clock=fields.text(source, "clock"),
        power=power,
    )


def _setting(source: Mapping[str, Any]) -> Setting:
    return Setting(
        delegate=fields.text(source, "delegate"),
        threads=fields.whole(source, "threads", at_least=1),
        core_cluster=fields.text(source, "core_cluster"),
    )


def _known_setting(source: Mapping[str, Any], known: _Settings) -> Setting:
    threads = source.get("threads")
    if type(threads) is int:  # true is equal to 1, but no number of threads
        try:
            return known[source.get("delegate"), threads, source.get("core_cluster")]
        except (KeyError, TypeError):
            pass  # told below what is wrong
    raise FieldError("", f"has a setting ({_setting(source)}) that the header does not list")


def _setting_header(value: object) -> SettingHeader:
    source = fields.record(value, _SETTING_HEADER)
    floor = calibration = None
    if source.get("floor") is not None:
        with fields.within("floor"):
            inner = fields.record(source["floor"], _FLOOR)
            floor = Floor(*(fields.number(inner, name) for name in ("latency_us", "latency_us_low", "latency_us_high")))
            fields.ordered_interval(inner, "latency_us")
    with fields.within("discrepancy"):
        inner = fields.record(source.get("discrepancy"), _DISCREPANCY)
        discrepancy = Discrepancy(
            relative_sd=fields.number(inner, "relative_sd", at_least=0),
            dof=fields.number_or_none(inner, "dof", at_least=1),
            networks=fields.whole(inner, "networks"),
            source=fields.one_of(inner, "source", DISCREPANCY_SOURCES),
            model_sha256s=fields.texts(inner, "model_sha256s"),
        )
    if source.get("calibration") is not None:
        with fields.within("calibration"):
            inner = fields.record(source["calibration"], _CALIBRATION)
            calibration = Calibration(
                scale=fields.number(inner, "scale", above=0),
                scale_low=fields.number(inner, "scale_low", above=0),
                scale_high=fields.number(inner, "scale_high", above=0),
                networks=fields.whole(inner, "networks", at_least=1),
                model_sha256s=fields.texts(inner, "model_sha256s"),
            )
            fields.ordered_interval(inner, "scale")
    return SettingHeader(_setting(source), floor, discrepancy, calibration)


def _run(value: object) -> RunSource:
    source = fields.record(value, _RUN)
    return RunSource(fields.text(source, "run_id"), fields.text_or_none(source, "plan_sha256"))


def _entries(top: Mapping[str, Any], known: _Settings, allow_non_finite: bool) -> tuple[Entry, ...]:
    seen: set[tuple[str, str, Setting]] = set()

    def read(value: object) -> Entry:
        entry = _entry(value, known, allow_non_finite)
        identity = (entry.key, entry.context, entry.setting)
        if identity in seen:
            raise FieldError("key", f"is measured twice in context {entry.context} with {entry.setting}")
        seen.add(identity)
        return entry

    entries = _each(top, "entries", read)
    lengths = {len(entry.latency_us_replicates) for entry in entries} - {0}
    if len(lengths) > 1:
        raise FieldError("entries", f"hold different numbers of replicates: {', '.join(map(str, sorted(lengths)))}")
    return entries


def _entry(value: object, known: _Settings, allow_non_finite: bool) -> Entry:
    source = fields.record(value, _ENTRY)
    entry = Entry(
        key=fields.text(source, "key"),
        context=fields.one_of(source, "context", CONTEXTS),
        setting=_known_setting(source, known),
        n_values=fields.wholes(source, "n_values", at_least=0),
        latency_us=fields.number(source, "latency_us", allow_non_finite=allow_non_finite),
        latency_us_low=fields.number(source, "latency_us_low", allow_non_finite=allow_non_finite),
        latency_us_high=fields.number(source, "latency_us_high", allow_non_finite=allow_non_finite),
        latency_us_replicates=fields.numbers(source, "latency_us_replicates", allow_non_finite=allow_non_finite),
        fixed_us=fields.number_or_none(source, "fixed_us"),
        method=fields.text(source, "method"),
        rounds=fields.whole(source, "rounds"),
        invocations=fields.whole(source, "invocations"),
        flags=fields.texts(source, "flags"),
        run_ids=fields.texts(source, "run_ids"),
        energy_uj=fields.number_or_none(source, "energy_uj"),
        energy_uj_low=fields.number_or_none(source, "energy_uj_low"),
        energy_uj_high=fields.number_or_none(source, "energy_uj_high"),
        charge_uah=fields.number_or_none(source, "charge_uah"),
        charge_uah_low=fields.number_or_none(source, "charge_uah_low"),
        charge_uah_high=fields.number_or_none(source, "charge_uah_high"),
        power_simulated=fields.flag_or_none(source, "power_simulated"),
    )
    if entry.latency_us_low > entry.latency_us_high:
        fields.ordered_interval(source, "latency_us")
    for name in ("energy_uj", "charge_uah"):
        if source.get(name) is not None:
            fields.ordered_interval(source, name)
    return entry


def _failed(value: object, known: _Settings) -> FailedEntry:
    source = fields.record(value, _FAILED)
    return FailedEntry(
        key=fields.text(source, "key"),
        context=None if source.get("context") is None else fields.one_of(source, "context", CONTEXTS),
        setting=_known_setting(source, known),
        reason=fields.text(source, "reason"),
        run_id=fields.text(source, "run_id"),
    )


def _elp_nas(value: object, known: _Settings) -> ElpNasOperation:
    source = fields.record(value, _ELP_NAS)
    return ElpNasOperation(
        name=fields.text(source, "name"),
        setting=_known_setting(source, known),
        n=fields.whole(source, "n", at_least=1),
        runs=fields.whole(source, "runs"),
        latency_us_mean_wall=fields.number(source, "latency_us_mean_wall", at_least=0),
        latency_us_level=fields.number(source, "latency_us_level", at_least=0),
        run_id=fields.text(source, "run_id"),
    )


_BEGIN_BYTES = 200  # a table says what it is in its first line


def save(lut: Lut, path: Path | str) -> None:
    """Write a table so that the file holds either what it held before or all of the new one.

    Raises :class:`~luts.errors.LutFileError` where the file system refuses (a full disk, no permission) and where
    ``path`` is a file that holds something else than a table; what was there stays.
    """
    _require_replaceable(Path(path))
    write_whole(path, dumps(lut))


def _require_replaceable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN_BYTES)
    except OSError:
        return  # not there, or what makes writing fail too
    if begin and b'"format": "lut"' not in begin:
        raise LutFileError(str(path), "holds something else than a table and is not overwritten; choose another name")


def dumps(lut: Lut) -> str:
    """The text of a table file: one entry a line, so that two files can be compared with any tool."""
    header = _header_json(lut.header)
    lines = [
        "{",
        f'"format": {json.dumps(FORMAT)}, "version": {VERSION},',
        f'"header": {json.dumps(header, indent=1, ensure_ascii=False, allow_nan=False)},',
        f'"entries": {_rows(map(_entry_json, lut.entries))},',
        f'"failed": {_rows(_flat(item) for item in lut.failed)},',
        f'"elp_nas": {_rows(_flat(item) for item in lut.elp_nas)}',
        "}",
    ]
    return "\n".join(lines) + "\n"


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file aside, flush it to disk and rename it into place. Raises :class:`~luts.errors.LutFileError`."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # the first error is the one to tell
            aside.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LutFileError(str(path), f"cannot be written: {reason}") from error


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some systems do not open directories; the rename itself is done
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _rows(items: Iterable[Mapping[str, Any]]) -> str:
    rows = [json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for item in items]
    return "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {"delegate": setting.delegate, "threads": setting.threads, "core_cluster": setting.core_cluster}


def _slots(item: Any, *but: str) -> dict[str, Any]:
    return {
        name: list(value) if type(value := getattr(item, name)) is tuple else value for name in item.__slots__ if name not in but
    }


def _flat(item: FailedEntry | ElpNasOperation) -> dict[str, Any]:
    return _slots(item, "setting") | _setting_json(item.setting)


def _entry_json(entry: Entry) -> dict[str, Any]:
    for name in ("latency_us", "latency_us_low", "latency_us_high"):
        if not math.isfinite(getattr(entry, name)):
            raise LutFileError("the table", f"{name} of {entry.key} is not finite and cannot be stored")
    row = {"key": entry.key, "context": entry.context} | _setting_json(entry.setting)
    row |= _slots(entry, "key", "context", "setting", "power_simulated", *_ENERGY)
    row |= {name: getattr(entry, name) for name in (*_ENERGY, "power_simulated") if getattr(entry, name) is not None}
    return row


def _header_json(header: Header) -> dict[str, Any]:
    conditions = _slots(header.conditions)
    conditions["power"] = None if header.conditions.power is None else _slots(header.conditions.power)
    return {
        "created_by": header.created_by,
        "device": _slots(header.device, "facts") | {"facts": dict(header.device.facts)},
        "conditions": conditions,
        "settings": [
            _setting_json(item.setting)
            | {
                "floor": None if item.floor is None else _slots(item.floor),
                "discrepancy": _slots(item.discrepancy),
                "calibration": None if item.calibration is None else _slots(item.calibration),
            }
            for item in header.settings
        ],
        "runs": [_slots(item) for item in header.runs],
    }
