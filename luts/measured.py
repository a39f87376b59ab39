"""Whole-network measurements: what calibrating and validating compare predictions with.

As JSON (``{"format": "network-measurements", "version": 1, "networks": [{"model": ..., "measured_us": ...}, ...]}``, a
bare list of such objects, or the output of ``luts.validate --json``), as CSV with the columns ``model`` and
``measured_us``, or as a run directory that holds whole networks. Further fields are optional, see
:class:`MeasuredNetwork`. A relative ``model`` path is looked for beside the file first.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luts import fields
from luts.errors import LutFileError
from luts.fields import FieldError
from luts.storage import write_whole

FORMAT = "network-measurements"
VERSION = 1


@dataclass(frozen=True, slots=True)
class MeasuredNetwork:
    """One network and what it cost, microseconds an inference.

    ``retest_us`` is a second measurement of the same network, apart from the first (for the retest floor). ``fit``
    marks a network to fit constants on, never to be scored; None leaves the choice. ``macs`` are multiply-accumulates.
    ``paper_counts`` says how often each operation of the thesis' table occurs in the network's genotype.
    """

    model: str
    measured_us: float
    measured_us_low: float | None = None
    measured_us_high: float | None = None
    retest_us: float | None = None
    fit: bool | None = None
    group: str | None = None
    macs: int | None = None
    paper_counts: tuple[tuple[str, float], ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured networks, where they came from, and the two forms of the thesis' table where there is one.

    ``paper_mean_us`` is mean wall time over N of each of the thesis' operations, ``paper_ours_us`` the same operations
    with this project's statistic; names are those of the networks' ``paper_counts``.
    """

    source: str
    networks: tuple[MeasuredNetwork, ...]
    paper_mean_us: tuple[tuple[str, float], ...] = ()
    paper_ours_us: tuple[tuple[str, float], ...] = ()


def load(path: Path | str) -> Measurements:
    """Read measurements from JSON, CSV or a run directory. Raises :class:`~luts.errors.LutFileError`."""
    file = Path(path)
    if file.is_dir():
        return _from_run(file)
    if file.suffix.lower() == ".csv":
        return _from_csv(file)
    return parse(fields.read_json(file), str(path), folder=file.parent)


def parse(document: object, path: str, *, folder: Path | None = None) -> Measurements:
    """The measurements in a parsed JSON document; ``folder`` is where relative model paths are looked for."""
    with fields.document(path):
        source: Mapping[str, Any] = {"networks": document} if type(document) is list else document  # type: ignore[assignment]
        if type(source) is not dict:
            raise FieldError("", f"expected measurements of networks, found {fields.shown(document)}")
        version = source.get("version", VERSION)
        if source.get("format", FORMAT) == FORMAT and (type(version) is not int or version != VERSION):
            raise FieldError("version", f"is {fields.shown(version)}, but this program reads version {VERSION}")
        networks = []
        for position, item in enumerate(fields.sequence(source, "networks")):
            with fields.within(f"networks[{position}]"):
                networks.append(_network(item, folder))
        if not networks:
            raise FieldError("networks", "holds no network")
        return Measurements(
            source=path,
            networks=tuple(networks),
            paper_mean_us=_named(source, "paper_mean_us"),
            paper_ours_us=_named(source, "paper_ours_us"),
        )


def _network(item: object, folder: Path | None) -> MeasuredNetwork:
    if type(item) is not dict:
        raise FieldError("", f"expected an object, found {fields.shown(item)}")
    return MeasuredNetwork(
        model=_found(fields.text(item, "model"), folder),
        measured_us=fields.number(item, "measured_us", above=0),
        measured_us_low=fields.number_or_none(item, "measured_us_low"),
        measured_us_high=fields.number_or_none(item, "measured_us_high"),
        retest_us=fields.number_or_none(item, "retest_us", above=0),
        fit=fields.flag_or_none(item, "fit"),
        group=fields.text_or_none(item, "group"),
        macs=fields.whole_or_none(item, "macs"),
        paper_counts=_named(item, "paper_counts"),
        sha256=fields.text_or_none(item, "sha256"),
    )


def _named(source: Mapping[str, Any], name: str) -> tuple[tuple[str, float], ...]:
    value = source.get(name)
    if value is None:
        return ()
    if type(value) is not dict:
        raise FieldError(name, f"expected an object, found {fields.shown(value)}")
    with fields.within(name):
        return tuple((key, fields.number(value, key, at_least=0)) for key in value)


def _found(model: str, folder: Path | None) -> str:
    if folder is None or "\0" in model:
        return model
    beside = folder / model
    try:
        return str(beside) if beside.exists() else model
    except OSError:  # a name too long to be one
        return model


def _from_run(folder: Path) -> Measurements:
    """Networks that a run measured; their files are taken from the artefact cache that the run filled."""
    from op_models.artifact import default_cache

    file = folder / "derived" / "operations.json"
    document = fields.read_json(file)
    cache = default_cache()
    with fields.document(str(file)):
        if type(document) is not dict or not document.get("networks"):
            raise FieldError("networks", "holds no measured network")
        networks = []
        for position, item in enumerate(fields.sequence(document, "networks")):
            with fields.within(f"networks[{position}]"):
                if type(item) is not dict:
                    raise FieldError("", f"expected an object, found {fields.shown(item)}")
                sha256 = fields.text(item, "model_sha256")
                networks.append(
                    MeasuredNetwork(
                        model=str(cache.path(sha256)),
                        measured_us=fields.number(item, "latency_us", above=0),
                        measured_us_low=fields.number_or_none(item, "latency_us_low"),
                        measured_us_high=fields.number_or_none(item, "latency_us_high"),
                        group=fields.text_or_none(item, "name"),
                        sha256=sha256,
                    )
                )
        return Measurements(str(folder), tuple(networks))


_NUMBERS = ("measured_us", "measured_us_low", "measured_us_high", "retest_us")


def _from_csv(path: Path) -> Measurements:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LutFileError(str(path), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LutFileError(str(path), f"is no CSV: byte {error.start} is not UTF-8 text") from None
    reader = csv.DictReader(io.StringIO(content))
    networks = []
    with fields.document(str(path)):
        try:
            heads = reader.fieldnames or ()
            for needed in ("model", "measured_us"):
                if needed not in heads:
                    raise FieldError("line 1", f"has no column {needed!r}")
            for row in reader:
                with fields.within(f"line {reader.line_num}"):
                    networks.append(_network(_csv_item(row), path.parent))
        except csv.Error as error:
            raise FieldError(f"line {reader.line_num}", f"is no CSV: {error}") from None
        if not networks:
            raise FieldError("", "holds no network")
    return Measurements(str(path), tuple(networks))


def _csv_item(row: Mapping[str | None, Any]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for name, cell in row.items():
        if name is None:
            raise FieldError("", "has more cells than the first line has columns")
        if cell is None or cell == "":
            continue
        if name in _NUMBERS:
            try:
                item[name] = float(cell)
            except ValueError:
                raise FieldError(name, f"expected a number, found {fields.shown(cell)}") from None
        elif name == "macs":
            if not cell.isascii() or not cell.isdigit() or len(cell) > 18:
                raise FieldError(name, f"expected a whole number, found {fields.shown(cell)}")
            item[name] = int(cell)
        elif name == "fit":
            if cell.lower() not in ("true", "false", "0", "1"):
                raise FieldError(name, f"expected true or false, found {fields.shown(cell)}")
            item[name] = cell.lower() in ("true", "1")
        elif name in ("model", "group", "sha256"):
            item[name] = cell
    return item


def save(measurements: Measurements, path: Path | str) -> None:
    """Write measurements as JSON, whole or not at all. Raises :class:`~luts.errors.LutFileError`."""
    networks = []
    for network in measurements.networks:
        item = {name: getattr(network, name) for name in network.__slots__ if getattr(network, name) not in (None, ())}
        if network.paper_counts:
            item["paper_counts"] = dict(network.paper_counts)
        networks.append(item)
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION, "networks": networks}
    for name in ("paper_mean_us", "paper_ours_us"):
        if getattr(measurements, name):
            document[name] = dict(getattr(measurements, name))
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
