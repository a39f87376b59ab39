"""Everything that can be wrong with a table or with a request to it.

LutError
├── LutFileError(path, reason, where)        a file cannot be read, written or understood
│   └── LutVersionError(path, found, known)  a table of another format version
├── UnlikeConditionsError(field, values)     runs or tables that must not be merged
├── UnknownOpError(key, nearest, misses)     an operation that the table does not hold
├── SettingError(asked, available)           no such, or more than one, delegate/threads/cluster
└── RequestError(reason)                     a request that cannot be answered as it was put
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luts.lookup import Miss


class LutError(Exception):
    """Root of all errors of this package; the message is one sentence."""


class LutFileError(LutError):
    """A file is missing, unreadable, or does not say what it should.

    ``where`` is the location inside the JSON document (``entries[3].latency_us``), empty for the
    file as a whole.
    """

    def __init__(self, path: str, reason: str, where: str = "") -> None:
        super().__init__(f"{path}: {where}: {reason}" if where else f"{path}: {reason}")
        self.path, self.reason, self.where = path, reason, where


class LutVersionError(LutFileError):
    """A table written in a format version that this program does not read."""

    def __init__(self, path: str, found: object, known: int) -> None:
        shown = repr(found)
        if len(shown) > 40:
            shown = shown[:37] + "..."
        super().__init__(path, f"is of LUT version {shown}, but this program reads version {known}", "version")
        self.found, self.known = found, known


class UnlikeConditionsError(LutError):
    """Measurements that were taken under different conditions and must not share a table.

    ``values`` maps each source (a run id or a path) to its value of ``field``.
    """

    def __init__(self, field: str, values: Mapping[str, object]) -> None:
        told = ", ".join(f"{value!r} in {source}" for source, value in values.items())
        super().__init__(f"the measurements differ in {field} and cannot be merged: {told}")
        self.field, self.values = field, dict(values)


class UnknownOpError(LutError):
    """The table holds no measurement of an operation that was asked for.

    ``key`` is the first one missing, ``nearest`` the measured key most like it, ``misses`` all of
    them when a whole network was asked for.
    """

    def __init__(
        self,
        key: str,
        nearest: str | None = None,
        *,
        reason: str | None = None,
        misses: Sequence[Miss] = (),
    ) -> None:
        others = len(misses) - 1
        text = f"no measurement of {key}"
        if reason:
            text += f" (it was tried: {reason})"
        if others > 0:
            text += f" and of {others} other operation{'s' if others > 1 else ''}"
        if nearest:
            text += f"; the nearest is {nearest}"
        super().__init__(text)
        self.key, self.nearest, self.reason, self.misses = key, nearest, reason, tuple(misses)


class SettingError(LutError):
    """The delegate, threads and core cluster asked for pick no set, or more than one."""

    def __init__(self, asked: str, available: Sequence[str], matching: int) -> None:
        held = "; ".join(available) or "nothing"
        verb = "picks none" if matching == 0 else f"picks {matching}"
        super().__init__(f"{asked or 'no choice'} {verb} of the settings in the table: {held}")
        self.asked, self.available, self.matching = asked, tuple(available), matching


class RequestError(LutError):
    """A request that makes no sense as it was put (for example a fit to no network)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
