"""A table file is read strictly, written whole, and never makes anything but a LutError of bad content."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import luts
from luts import fields, storage
from luts.errors import LutError, LutFileError, LutVersionError
from luts.schema import Calibration, Discrepancy, ElpNasOperation, FailedEntry, Lut, PowerSource, Setting
from tests.luts import tables

FULL = replace(
    tables.lut(
        [
            replace(tables.entry(tables.ADD, 2.5, sd_us=0.1), energy_uj=1.5, power_simulated=True),
            tables.entry(tables.CONV, 7.0, "cold", sd_us=0.2, flags=("noisy",)),
        ],
        floor_us=0.8,
        conditions=replace(tables.CONDITIONS, power=PowerSource("sim", True, 4_000_000.0)),
    ),
    failed=(
        FailedEntry(tables.CONV, "hot", tables.SETTING, "the runtime refused it", "r1"),
        FailedEntry("CUSTOM", None, tables.SETTING, "cannot be lifted", "r1"),
    ),
    elp_nas=(ElpNasOperation("sep3@32", tables.SETTING, 100, 98, 127.6, 114.1, "r1"),),
)
DOCUMENT: dict[str, Any] = json.loads(storage.dumps(FULL))
VALIDATOR = jsonschema.Draft202012Validator(json.loads((files("luts") / "lut.schema.json").read_text()))

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def random_luts(draw: st.DrawFn) -> Lut:
    setting = Setting(draw(words), draw(st.integers(1, 64)), draw(words))
    width = draw(st.integers(0, 3))
    entries = []
    for key, context in draw(st.lists(st.tuples(words, st.sampled_from(["hot", "cold", "far"])), max_size=4, unique=True)):
        low, middle, high = sorted(draw(st.tuples(finite, finite, finite)))
        base = tables.entry(key, 1.0, context, setting=setting, width=0)
        replicates = tuple(draw(st.lists(finite, min_size=width, max_size=width)))
        entries.append(
            replace(
                base,
                latency_us=middle,
                latency_us_low=low,
                latency_us_high=high,
                latency_us_replicates=replicates,
                flags=tuple(draw(st.lists(words, max_size=2))),
                charge_uah=draw(st.none() | finite),
            )
        )
    return tables.lut(
        entries,
        settings=[setting],
        floor_us=draw(st.none() | finite),
        discrepancy=Discrepancy(draw(st.floats(0, 1)), draw(st.none() | st.floats(1, 99)), 5, "networks", ("aa",)),
    )


def parts(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a document."""
    found = [at] if at else []
    if isinstance(document, dict | list):
        for name, value in document.items() if isinstance(document, dict) else enumerate(document):
            found += parts(value, (*at, name))
    return found


PATHS = parts(DOCUMENT)


def changed(path: tuple[Any, ...], action: str, value: Any) -> Any:
    document = copy.deepcopy(DOCUMENT)
    holder: Any = document
    for step in path[:-1]:
        holder = holder[step]
    if action == "set":
        holder[path[-1]] = value
    elif action == "delete":
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder[str(value)] = value
    else:
        holder.append(copy.deepcopy(holder[path[-1]]))
    return document


@given(random_luts())
def test_a_table_is_read_as_it_was_written(table: Lut) -> None:
    assert storage.parse(json.loads(storage.dumps(table)), "t") == table


@given(random_luts())
def test_every_table_that_is_written_follows_the_published_schema(table: Lut) -> None:
    VALIDATOR.validate(json.loads(storage.dumps(table)))


def test_a_table_with_every_field_survives_the_disk(tmp_path: Path) -> None:
    storage.save(FULL, tmp_path / "t.json")
    assert luts.load(tmp_path / "t.json") == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@given(st.sampled_from(PATHS), st.sampled_from(["set", "delete", "add"]), json_values)
def test_a_mutated_table_is_valid_or_a_lut_error_that_names_file_and_place(
    path: tuple[Any, ...], action: str, value: Any
) -> None:
    document = changed(path, action, value)
    said = None
    try:
        table = storage.parse(document, "t.json")
    except LutFileError as error:
        said = str(error)
    if said is not None:
        assert said.startswith("t.json: ")
        assert "\n" not in said
    else:  # what the program accepts, the published schema accepts; and it can be written and read again
        VALIDATOR.validate(document)
        assert storage.parse(json.loads(storage.dumps(table)), "t") == table
        for setting in table.settings:
            assert table.table(delegate=setting.delegate).setting == setting


@given(st.binary(max_size=60))
def test_any_bytes_are_a_lut_error(data: bytes) -> None:
    with pytest.raises(LutError):
        storage.parse(fields.parse_json(data, "t"), "t")


@given(st.integers(0, len(storage.dumps(FULL)) - 3))
def test_a_truncated_table_is_a_lut_error(length: int) -> None:
    with pytest.raises(LutFileError):
        storage.parse(fields.parse_json(storage.dumps(FULL).encode()[:length], "t"), "t")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format": "lut", "version": ' + b"1" * 10_000 + b"}",
        b'{"format": "lut", "version": NaN}',
        b"\xff\xfe",
        b"",
        b"null",
        b'{"format": "lut"}',
    ],
)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(LutFileError) as raised:
        luts.load(tmp_path / "t.json")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_table_of_another_version_is_named_as_such() -> None:
    with pytest.raises(LutVersionError, match="is of LUT version 2, but this program reads version 1") as raised:
        storage.parse(DOCUMENT | {"version": 2, "something": "new"}, "t.json")
    assert (raised.value.found, raised.value.known) == (2, 1)


def test_an_error_names_the_place_in_the_document() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["entries"][1]["latency_us"] = "fast"
    with pytest.raises(LutFileError, match=r"^t\.json: entries\[1\]\.latency_us: expected a number, found 'fast'$"):
        storage.parse(document, "t.json")
    document = copy.deepcopy(DOCUMENT)
    document["header"]["settings"][0]["discrepancy"]["relative_sd"] = -1
    with pytest.raises(LutFileError) as raised:
        storage.parse(document, "t.json")
    assert raised.value.where == "header.settings[0].discrepancy.relative_sd"


def test_infinite_and_huge_numbers_are_refused() -> None:
    for value in (math.inf, 10**400):
        document = copy.deepcopy(DOCUMENT)
        document["entries"][0]["latency_us_replicates"][3] = value
        with pytest.raises(LutFileError, match=r"latency_us_replicates\[3\]"):
            storage.parse(document, "t.json")


def test_one_operation_twice_in_one_context_and_setting_is_refused() -> None:
    with pytest.raises(LutFileError, match="is measured twice"):
        storage.parse(DOCUMENT | {"entries": DOCUMENT["entries"][:1] * 2}, "t.json")


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "t.json"
    folder.mkdir()
    (folder / "kept").touch()
    with pytest.raises(LutFileError, match="cannot be written"):
        storage.save(FULL, folder)
    assert (folder / "kept").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    with pytest.raises(LutFileError, match="cannot be written"):
        storage.save(FULL, tmp_path / "nowhere" / "t.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LutFileError, match=r"nothing\.json: cannot be read"):
        luts.load(tmp_path / "nothing.json")


def test_a_calibration_survives_the_disk() -> None:
    header = replace(FULL.header.settings[0], calibration=Calibration(1.05, 1.0, 1.1, 5, ("aa", "bb")))
    table = replace(FULL, header=replace(FULL.header, settings=(header,)))
    assert storage.parse(json.loads(storage.dumps(table)), "t") == table
