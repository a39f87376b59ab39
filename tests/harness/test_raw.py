from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import CorruptRunError
from harness.raw import RAW_DTYPE, decode, encode, job_numbers, rows

PATH = Path("raw/b/00000.npy")
ROW = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), *(st.integers(0, 2**62) for _ in range(3))
)  # fmt: skip
GOOD = rows(job=[1, 1, 2], invoke=[0, 1, 0], cpu_ns=[5, 6, 7], wall_ns=[8, 9, 10], at_ns=[11, 12, 13])


@given(values=st.lists(ROW, min_size=1, max_size=50))
def test_rows_come_back_and_numpy_alone_reads_them(values: list[tuple[int, ...]]) -> None:
    raw = np.array(values, dtype=RAW_DTYPE)
    data = encode(raw)
    back = decode(data, PATH)
    assert back.dtype == RAW_DTYPE
    assert back.tolist() == values
    assert np.load(io.BytesIO(data), allow_pickle=False).tolist() == values
    assert encode(back) == data
    assert job_numbers(back) == tuple(sorted({value[0] for value in values}))


def test_decoded_rows_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        decode(encode(GOOD), PATH)["cpu_ns"][0] = 1


def test_a_strided_view_is_encoded_as_its_values() -> None:
    assert decode(encode(GOOD[::2]), PATH).tolist() == GOOD[::2].tolist()


@settings(deadline=None)
@given(cut=st.integers(0, len(encode(GOOD)) - 1), more=st.binary(min_size=1, max_size=40))
def test_truncated_and_lengthened_files_are_corrupt(cut: int, more: bytes) -> None:
    data = encode(GOOD)
    for odd in (data[:cut], data + more):
        with pytest.raises(CorruptRunError, match=r"00000\.npy"):
            decode(odd, PATH)


@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: b"\x93NUMPY\x01\x00" + rest)))
def test_bytes_that_are_no_round_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptRunError):
        decode(data, PATH)


def test_headers_that_numpy_would_follow_are_refused() -> None:
    def saved(array: Any) -> bytes:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue()

    descending = GOOD.astype(RAW_DTYPE.newbyteorder(">"))
    for array in (np.array([{"a": 1}]), np.zeros(3), GOOD.reshape(1, 3), GOOD[:0], descending, np.zeros((), RAW_DTYPE)):
        with pytest.raises(CorruptRunError):
            decode(saved(array), PATH)
    hostile = encode(GOOD).replace(b"(3,), }", b"(-3,),}").replace(b"(3,), }", b"(99999999999,), }")
    with pytest.raises(CorruptRunError):
        decode(hostile, PATH)


def test_a_number_that_no_clock_gives_is_refused_on_both_sides() -> None:
    wrapped = GOOD.copy()
    wrapped["cpu_ns"][1] = np.uint64(2**64 - 5)  # a difference of -5
    with pytest.raises(ValueError, match="no clock"):
        encode(wrapped)
    with pytest.raises(CorruptRunError, match="no clock"):
        decode(encode(GOOD).replace(GOOD.tobytes(), wrapped.tobytes()), PATH)
    with pytest.raises(ValueError, match="single invocation"):
        encode(GOOD[:0])
    with pytest.raises(ValueError, match="not raw rows"):
        encode(np.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("cpu_ns", [-1, 2]),
        ("cpu_ns", [1.5, 2.0]),
        ("cpu_ns", [float("nan"), 1.0]),
        ("wall_ns", ["1", "2"]),
        ("at_ns", [2**63, 0]),
        ("at_ns", [2**70, 0]),
        ("job", [2**32, 0]),
        ("invoke", [2**16, 0]),
        ("invoke", [[1, 2], [3, 4]]),
        ("invoke", [1, 2, 3]),
    ],
)
def test_columns_must_be_whole_and_fit(column: str, value: list[Any]) -> None:
    columns: dict[str, Any] = {"job": 1, "invoke": [0, 1], "cpu_ns": 5, "wall_ns": [5, 6], "at_ns": [7, 8]}
    assert rows(**columns).size == 2
    with pytest.raises(ValueError):  # noqa: PT011 -- numpy words some of these
        rows(**{**columns, column: value})
