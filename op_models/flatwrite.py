"""Writes FlatBuffers tables back to front, a packed struct a table, for files of hundreds of operators in milliseconds.

The generated object API needs about 40 us a table, which is 0.1 s and more for an op model of 400 operators; here a
table is one ``struct.pack``. As in the library's own builder, children are written before parents and every position
is counted from the end of the file, so a child can be shared by any number of parents.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

FieldKind = Literal["u32", "i32", "u8", "ref"]
# One field of a table: (slot number in the schema, kind). ``ref`` points to a child; 0 stands for an absent child.
Field = tuple[int, FieldKind]
_FORMAT = {"u32": "I", "i32": "i", "u8": "B", "ref": "I"}
_SIZE = {"u32": 4, "i32": 4, "u8": 1, "ref": 4}
_FILE_ALIGNMENT = 16


class TableLayout:
    """Layout of one kind of table: which slots are present and where they lie.

    ``fields`` are listed in the order in which values are passed to :meth:`Writer.table`; four-byte fields go first
    in the table.
    """

    def __init__(self, *fields: Field) -> None:
        ordered = sorted(range(len(fields)), key=lambda at: -_SIZE[fields[at][1]])
        offset = 4
        offsets = [0] * len(fields)
        for at in ordered:
            offsets[at] = offset
            offset += _SIZE[fields[at][1]]
        self.size = -(-offset // 4) * 4
        self.order = tuple(ordered)
        self.struct = struct.Struct("<i" + "".join(_FORMAT[fields[at][1]] for at in ordered) + f"{self.size - offset}x")
        self.references = tuple((at, offsets[at]) for at, field in enumerate(fields) if field[1] == "ref")
        slots = max((slot for slot, _ in fields), default=-1) + 1
        entries = [0] * slots
        for (slot, _), offset in zip(fields, offsets, strict=True):
            entries[slot] = offset
        self.vtable = struct.pack(f"<{slots + 2}H", 4 + 2 * slots, self.size, *entries)


class Writer:
    """One file under construction. Positions (``int``) count from the end of the file; 0 means *absent*."""

    def __init__(self) -> None:
        self._chunks: list[bytes | memoryview] = []
        self._size = 0
        self._vtables: dict[bytes, int] = {}
        self._vectors: dict[bytes, int] = {}

    def _push(self, chunk: bytes | memoryview, alignment: int, header: int = 0) -> int:
        """Prepend ``chunk`` so that what follows its first ``header`` bytes is aligned; gives the chunk's position."""
        body = len(chunk) - header
        padding = -(self._size + body) % alignment
        if padding:
            self._chunks.append(bytes(padding))
        self._chunks.append(chunk)
        self._size += padding + len(chunk)
        return self._size

    def data(self, content: bytes | memoryview) -> int:
        """A vector of bytes whose content is aligned to 16, as the schema asks of buffers."""
        self._push(content, _FILE_ALIGNMENT)
        return self._push(struct.pack("<I", len(content)), 4)

    def ints(self, values: Sequence[int]) -> int:
        """A vector of int32; equal vectors are stored once."""
        return self._shared(struct.pack(f"<I{len(values)}i", len(values), *values), 4)

    def numbers(self, values: np.ndarray) -> int:
        """A vector of any little-endian numeric type; equal vectors are stored once."""
        return self._shared(struct.pack("<I", values.size) + values.tobytes(), max(4, values.itemsize), header=4)

    def text(self, value: str) -> int:
        """A string."""
        raw = value.encode()
        return self._shared(struct.pack("<I", len(raw)) + raw + b"\0", 4)

    def _shared(self, chunk: bytes, alignment: int, header: int = 0) -> int:
        found = self._vectors.get(chunk)
        if found is None:
            found = self._vectors[chunk] = self._push(chunk, alignment, header)
        return found

    def tables(self, positions: Sequence[int]) -> int:
        """A vector of references to tables."""
        count = len(positions)
        start = self._size + (-self._size % 4) + 4 * count + 4
        slots = start - 4 - 4 * np.arange(count, dtype=np.int64)
        offsets = (slots - np.asarray(positions, dtype=np.int64)).astype("<u4")
        return self._push(struct.pack("<I", count) + offsets.tobytes(), 4)

    def table(self, layout: TableLayout, *values: int) -> int:
        """A table whose ``values`` follow the fields of its layout."""
        vtable = self._vtables.get(layout.vtable)
        if vtable is None:
            vtable = self._vtables[layout.vtable] = self._push(layout.vtable, 4)
        position = self._size + (-(self._size + layout.size) % 4) + layout.size
        fields = list(values)
        absent = False
        for at, offset in layout.references:
            if fields[at]:
                fields[at] = position - offset - fields[at]
            else:
                absent = True
        if absent:
            raise ValueError("a table was given an absent child for a field of its layout")
        self._push(layout.struct.pack(vtable - position, *[fields[at] for at in layout.order]), 4)
        return position

    def embed(self, buffer: bytes, root: int) -> int:
        """A finished little FlatBuffer whose root table starts at byte ``root``; gives that table's position."""
        return self._push(buffer, _FILE_ALIGNMENT) - root

    def finish(self, root: int, identifier: bytes) -> bytes:
        """The whole file with ``root`` as its root table."""
        padding = -(self._size + 8) % _FILE_ALIGNMENT
        total = self._size + padding + 8
        header = struct.pack("<I4s", total - root, identifier) + bytes(padding)
        return b"".join([header, *reversed(self._chunks)])


@lru_cache(maxsize=256)
def layout(*fields: Field) -> TableLayout:
    """The (cached) layout of tables that have just these fields."""
    return TableLayout(*fields)
