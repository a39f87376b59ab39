"""Reads the fields of a JSON document strictly: each reader returns the value or says where and why it is wrong.

Used for tables and for the files that become tables. A :class:`FieldError` carries the location inside the document;
:func:`within` puts the enclosing location in front of it, so that the good path costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from luts.errors import LutFileError

_ABSENT = object()
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}


class FieldError(Exception):
    """A field at ``where`` (relative to whoever catches it) is not what it should be."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@contextmanager
def within(where: str) -> Iterator[None]:
    """Put ``where`` in front of the location of a :class:`FieldError` raised inside."""
    try:
        yield
    except FieldError as error:
        raise located(where, error) from None


def located(where: str, error: FieldError) -> FieldError:
    """The same error seen from outside ``where``."""
    inner = error.where
    joined = where + inner if inner.startswith("[") or not inner else f"{where}.{inner}"
    return FieldError(joined, error.reason)


@contextmanager
def document(path: str) -> Iterator[None]:
    """Turn a :class:`FieldError` raised inside into a :class:`~luts.errors.LutFileError` of ``path``."""
    try:
        yield
    except FieldError as error:
        raise LutFileError(path, error.reason, error.where) from None


def read_json(path: Path | str, *, allow_non_finite: bool = False) -> Any:
    """The JSON document in a file. Raises :class:`~luts.errors.LutFileError` for anything that goes wrong."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LutFileError(str(path), f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the name
        raise LutFileError(repr(str(path)), f"is no usable file name: {error}") from None
    return parse_json(data, str(path), allow_non_finite=allow_non_finite)


def parse_json(data: bytes, path: str, *, allow_non_finite: bool = False) -> Any:
    """The JSON document in ``data``; ``path`` only names it. NaN and infinities are no JSON unless allowed."""
    try:
        if allow_non_finite:
            return loads(data)
        return loads(data, parse_constant=_refuse_constant)
    except JSONDecodeError as error:
        raise LutFileError(path, f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise LutFileError(path, f"is not JSON: byte {error.start} is not UTF-8 text") from None
    except RecursionError:
        raise LutFileError(path, "is nested too deeply to be a table") from None
    except ValueError as error:  # a refused constant, or an integer of thousands of digits
        raise LutFileError(path, f"is not JSON: {error}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def shown(value: object) -> str:
    """A short description of a wrong value for a message."""
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(name: str, wanted: str, value: object) -> FieldError:
    if value is _ABSENT:
        return FieldError(name, f"is missing; expected {wanted}")
    return FieldError(name, f"expected {wanted}, found {shown(value)}")


def record(value: object, known: frozenset[str], name: str = "") -> Mapping[str, Any]:
    """An object with no field besides ``known``."""
    if type(value) is not dict:
        raise _wrong(name, "an object", value)
    if not value.keys() <= known:
        odd = sorted(value.keys() - known)[0]
        raise FieldError(f"{name}.{shown_name(odd)}" if name else shown_name(odd), "is not a field of this format")
    return value


def shown_name(name: str) -> str:
    """A field's name for a location: quoted where it is no plain word."""
    return name if name.isidentifier() else shown(name)


def text(source: Mapping[str, Any], name: str) -> str:
    """A text that is not empty."""
    value = source.get(name, _ABSENT)
    if type(value) is not str or not value:
        raise _wrong(name, "a text that is not empty", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate written as \ud800: could be read but never written again
            raise FieldError(name, "holds half a character (a lone surrogate)") from None
    return value


def text_or_none(source: Mapping[str, Any], name: str) -> str | None:
    """A text, or None where the field is null or absent."""
    return None if source.get(name) is None else text(source, name)


def one_of(source: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """One of a few words."""
    value = source.get(name, _ABSENT)
    if type(value) is not str or value not in choices:
        raise _wrong(name, " or ".join(map(repr, choices)), value)
    return value


def number(
    source: Mapping[str, Any],
    name: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    allow_non_finite: bool = False,
) -> float:
    """A finite number (true and false are none), as float."""
    value = source.get(name, _ABSENT)
    kind = type(value)
    if kind is int:
        try:
            value = float(value)
        except OverflowError:
            raise FieldError(name, "is a number too large to be used") from None
    elif kind is not float:
        raise _wrong(name, "a number", value)
    if allow_non_finite:
        return value  # type: ignore[no-any-return]  # its kind was checked above
    if not -math.inf < value < math.inf:
        raise _wrong(name, "a finite number", value)
    if value < at_least:
        raise _wrong(name, f"a number of at least {at_least:g}", value)
    if value <= above:
        raise _wrong(name, f"a number above {above:g}", value)
    return value  # type: ignore[no-any-return]  # its kind was checked above


def number_or_none(
    source: Mapping[str, Any], name: str, *, at_least: float = -math.inf, above: float = -math.inf
) -> float | None:
    """A finite number, or None where the field is null or absent."""
    return None if source.get(name) is None else number(source, name, at_least=at_least, above=above)


def whole(source: Mapping[str, Any], name: str, *, at_least: int = 0) -> int:
    """A whole number of at least ``at_least``, below 2**53 so that every reader of JSON agrees on it."""
    value = source.get(name, _ABSENT)
    if type(value) is not int or not at_least <= value < 2**53:
        raise _wrong(name, f"a whole number of at least {at_least}", value)
    return value


def whole_or_none(source: Mapping[str, Any], name: str, *, at_least: int = 0) -> int | None:
    """A whole number, or None where the field is null or absent."""
    return None if source.get(name) is None else whole(source, name, at_least=at_least)


def flag_or_none(source: Mapping[str, Any], name: str) -> bool | None:
    """True, false, or None where the field is null or absent."""
    value = source.get(name)
    if value is not None and type(value) is not bool:
        raise _wrong(name, "true, false or null", value)
    return value


def sequence(source: Mapping[str, Any], name: str) -> list[Any]:
    """A list of anything."""
    value = source.get(name, _ABSENT)
    if type(value) is not list:
        raise _wrong(name, "a list", value)
    return value


def texts(source: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts that are not empty."""
    return tuple(
        text({f"{name}[{position}]": value}, f"{name}[{position}]") for position, value in enumerate(sequence(source, name))
    )


def wholes(source: Mapping[str, Any], name: str, *, at_least: int = 0) -> tuple[int, ...]:
    """A list of whole numbers."""
    values = sequence(source, name)
    for position, value in enumerate(values):
        if type(value) is not int or not at_least <= value < 2**53:
            raise _wrong(f"{name}[{position}]", f"a whole number of at least {at_least}", value)
    return tuple(values)


def numbers(source: Mapping[str, Any], name: str, *, allow_non_finite: bool = False) -> tuple[float, ...]:
    """A list of finite numbers, as floats."""
    values = sequence(source, name)
    # As our own writer leaves it: checked without a loop of Python.
    if set(map(type, values)) <= {float} and (allow_non_finite or all(map(math.isfinite, values))):
        return tuple(values)
    return tuple(
        number({f"{name}[{position}]": value}, f"{name}[{position}]", allow_non_finite=allow_non_finite)
        for position, value in enumerate(values)
    )


def ordered_interval(source: Mapping[str, Any], name: str, *, allow_non_finite: bool = False) -> None:
    """Require ``NAME_low`` not to lie above ``NAME_high`` where both are numbers."""
    low, high = source.get(f"{name}_low"), source.get(f"{name}_high")
    if low is None or high is None:
        return
    first, last = (number(source, f"{name}_{end}", allow_non_finite=allow_non_finite) for end in ("low", "high"))
    if first > last:
        raise FieldError(f"{name}_low", f"lies above {name}_high ({low!r} > {high!r})")
