"""The raw file of one round: one row an invocation, as a .npy that numpy alone reads."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import CorruptRunError

RAW_DTYPE = np.dtype([("job", "<u4"), ("invoke", "<u2"), ("cpu_ns", "<u8"), ("wall_ns", "<u8"), ("at_ns", "<u8")])
"""``job`` is the place in jobs.json, ``invoke`` counts within the job's burst, ``at_ns`` is the monotonic start."""

RawRows = NDArray[np.void]
"""A one-dimensional array of :data:`RAW_DTYPE`."""

# A duration or moment above this came from a negative number or from rubbish: 2**62 ns are 146 years.
_LARGEST_NS = 2**62
_NS_FIELDS = ("cpu_ns", "wall_ns", "at_ns")

# numpy reads a .npy header as a Python literal and guesses at old ones; exactly one header is right here.
_PREFIX_BYTES = 10
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    + re.escape(f"{{'descr': {RAW_DTYPE.descr}, 'fortran_order': False, 'shape': (".encode())
    + rb"([0-9]{1,12}),\), \} *\n",
    re.DOTALL,
)


def rows(*, job: ArrayLike, invoke: ArrayLike, cpu_ns: ArrayLike, wall_ns: ArrayLike, at_ns: ArrayLike) -> RawRows:
    """Raw rows from five columns of equal length (a scalar is repeated).

    Raises ValueError where a column is not a whole, non-negative, fitting number.

    >>> rows(job=3, invoke=[0, 1], cpu_ns=[100, 90], wall_ns=[120, 99], at_ns=[5, 200])["wall_ns"].tolist()
    [120, 99]
    """
    columns = {"job": job, "invoke": invoke, "cpu_ns": cpu_ns, "wall_ns": wall_ns, "at_ns": at_ns}
    arrays = dict(zip(columns, np.broadcast_arrays(*(np.atleast_1d(c) for c in columns.values())), strict=True))
    size = next(iter(arrays.values())).shape
    if len(size) != 1:
        raise ValueError(f"raw columns are one-dimensional, not of shape {size}")
    out: RawRows = np.empty(size, dtype=RAW_DTYPE)
    for name, column in arrays.items():
        out[name] = _whole(name, column)
    return out


def encode(raw: RawRows) -> bytes:
    """The .npy bytes of one round; the same rows always give the same bytes.

    Raises ValueError where the rows are not a non-empty one-dimensional :data:`RAW_DTYPE` array of sane numbers.
    """
    problem = _problem(raw)
    if problem is not None:
        raise ValueError(f"these are not raw rows: {problem}")
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(raw), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def decode(data: bytes, path: Path) -> RawRows:
    """The rows of a raw file, read-only; ``path`` is for the message. Raises CorruptRunError."""
    match = _HEADER.match(data)
    if match is None or int.from_bytes(match[1], "little") + _PREFIX_BYTES != match.end():
        raise CorruptRunError(path=path, reason="not a raw round file")
    expected_bytes = int(match[2]) * RAW_DTYPE.itemsize
    found_bytes = len(data) - match.end()
    if found_bytes != expected_bytes:
        raise CorruptRunError(path=path, reason=f"expected {expected_bytes} bytes of rows, found {found_bytes}")
    raw: RawRows = np.frombuffer(data, dtype=RAW_DTYPE, offset=match.end())
    problem = _problem(raw)
    if problem is not None:
        raise CorruptRunError(path=path, reason=problem)
    return raw


def job_numbers(raw: RawRows) -> tuple[int, ...]:
    """The jobs that a round visited, ascending."""
    return tuple(int(number) for number in np.unique(raw["job"]))


def _whole(name: str, column: NDArray[np.generic]) -> NDArray[np.generic]:
    # Objects hold Python integers that no 64-bit type holds; floats hold NaN and lose small digits.
    if column.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, not {column.dtype}")
    largest = _LARGEST_NS if name in _NS_FIELDS else np.iinfo(RAW_DTYPE[name]).max
    if column.size and (int(column.min()) < 0 or int(column.max()) > largest):
        raise ValueError(f"{name} must lie in 0..{largest}, found {int(column.min())}..{int(column.max())}")
    return column


def _problem(raw: RawRows) -> str | None:
    if raw.dtype != RAW_DTYPE or raw.ndim != 1:
        return f"expected one dimension of {RAW_DTYPE}, found {raw.ndim} of {raw.dtype}"
    if not raw.size:
        return "a round without a single invocation"
    for name in _NS_FIELDS:
        if int(raw[name].max()) > _LARGEST_NS:
            return f"{name} holds {int(raw[name].max())}, which no clock gives"
    return None
