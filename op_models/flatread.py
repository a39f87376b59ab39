"""Reads FlatBuffers tables by slot number, with every offset checked against the file's bounds.

The generated accessors of the schema check nothing and cost microseconds a field; networks have thousands of fields. What is
read here are the few tables that every network has many of; the rest goes through the schema's own classes.

Format: the FlatBuffers internals (a table points back to its vtable, which holds the offset of each field; vectors are
prefixed with their length; offsets to them are relative to where they stand).
"""

from __future__ import annotations

import struct

_U16, _U32, _I32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")


class Reader:
    """Fields of tables in one FlatBuffers file. Raises ValueError or struct.error for whatever lies outside the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._vtables: dict[int, tuple[int, ...]] = {}

    def root(self) -> int:
        """Position of the root table."""
        return self._inside(_U32.unpack_from(self.data, 0)[0])

    def slots(self, table: int) -> tuple[int, ...]:
        """Offsets of a table's fields from its position, by slot; 0 where a field is absent."""
        vtable = table - _I32.unpack_from(self.data, table)[0]
        found = self._vtables.get(vtable)
        if found is None:
            size = _U16.unpack_from(self.data, self._inside(vtable))[0]
            if size < 4 or size % 2:
                raise ValueError(f"a vtable of {size} bytes")
            found = struct.unpack_from(f"<{(size - 4) // 2}H", self.data, vtable + 4)
            self._vtables[vtable] = found
        return found

    def field(self, table: int, slot: int) -> int:
        """Position of a field, 0 where it is absent."""
        slots = self.slots(table)
        offset = slots[slot] if slot < len(slots) else 0
        return table + offset if offset else 0

    def u8(self, table: int, slot: int) -> int:
        """An unsigned byte, 0 by default."""
        at = self.field(table, slot)
        return self.data[at] if at else 0

    def u32(self, table: int, slot: int) -> int:
        """An unsigned 32-bit number, 0 by default."""
        at = self.field(table, slot)
        return int(_U32.unpack_from(self.data, at)[0]) if at else 0

    def table(self, table: int, slot: int) -> int:
        """Position of a table that a field refers to, 0 where it is absent."""
        at = self.field(table, slot)
        return self._referred(at) if at else 0

    def vector(self, table: int, slot: int, element_bytes: int) -> tuple[int, int]:
        """(position of the first element, number of elements) of a vector; (0, 0) where it is absent."""
        at = self.field(table, slot)
        if not at:
            return 0, 0
        start = self._referred(at)
        count = _U32.unpack_from(self.data, start)[0]
        if start + 4 + count * element_bytes > len(self.data):
            raise ValueError(f"a vector of {count} elements runs over the end of the file")
        return start + 4, count

    def ints(self, table: int, slot: int) -> tuple[int, ...]:
        """A vector of 32-bit numbers."""
        start, count = self.vector(table, slot, 4)
        return struct.unpack_from(f"<{count}i", self.data, start) if count else ()

    def tables(self, table: int, slot: int) -> list[int]:
        """Positions of a vector of tables."""
        start, count = self.vector(table, slot, 4)
        if not count:
            return []
        offsets = struct.unpack_from(f"<{count}I", self.data, start)
        return [self._inside(start + 4 * i + offset) for i, offset in enumerate(offsets)]

    def text(self, table: int, slot: int) -> str:
        """A text, empty where it is absent; bytes that are no UTF-8 are marked as such."""
        start, count = self.vector(table, slot, 1)
        return self.data[start : start + count].decode("utf-8", "replace")

    def content(self, table: int) -> bytes:
        """The bytes of a table's own fields (not of what they refer to) with its layout, for telling equal tables."""
        slots = self.slots(table)
        vtable = table - _I32.unpack_from(self.data, table)[0]
        size = _U16.unpack_from(self.data, vtable + 2)[0]
        return struct.pack(f"<{len(slots)}H", *slots) + self.data[table + 4 : table + size]

    def _referred(self, at: int) -> int:
        return self._inside(at + _U32.unpack_from(self.data, at)[0])

    def _inside(self, position: int) -> int:
        if not 0 < position <= len(self.data) - 4:
            raise ValueError(f"an offset leads to {position} in a file of {len(self.data)} bytes")
        return position
