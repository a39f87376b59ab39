"""A table's entries as CSV and Parquet, a row an entry; pandas is imported only when one is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luts.errors import LutFileError, RequestError
from luts.schema import Entry, Lut
from luts.storage import write_whole

if TYPE_CHECKING:
    import pandas

# Resamples stay in the JSON form: a view is for looking at and joining.
_COLUMNS = tuple(name for name in Entry.__slots__ if name not in ("setting", "latency_us_replicates"))


def rows(lut: Lut) -> list[dict[str, Any]]:
    """One flat record an entry: its fields, its setting, and the device; lists are joined by spaces."""
    found = []
    for entry in lut.entries:
        row: dict[str, Any] = {name: _cell(getattr(entry, name)) for name in _COLUMNS}
        row |= {
            "delegate": entry.setting.delegate,
            "threads": entry.setting.threads,
            "core_cluster": entry.setting.core_cluster,
            "device": lut.header.device.name or lut.header.device.cpu,
            "runtime": f"{lut.header.conditions.runtime} {lut.header.conditions.runtime_version}",
        }
        found.append(row)
    return found


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def frame(lut: Lut) -> pandas.DataFrame:
    """The entries as a pandas frame. Raises :class:`~luts.errors.RequestError` where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise RequestError("this view needs pandas, which is not installed") from None
    return pandas.DataFrame(rows(lut))


def write_csv(lut: Lut, path: Path | str) -> None:
    """Write the entries as CSV with a header line (the standard library's writer, no pandas)."""
    import csv

    out = io.StringIO()
    records = rows(lut)
    names = list(records[0]) if records else [*_COLUMNS, "delegate", "threads", "core_cluster", "device", "runtime"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_whole(path, out.getvalue())


def write_parquet(lut: Lut, path: Path | str) -> None:
    """Write the entries as Parquet."""
    out = io.BytesIO()
    try:
        frame(lut).to_parquet(out, index=False)
    except ImportError:
        raise RequestError("Parquet needs pyarrow, which is not installed") from None
    except ValueError as error:
        raise LutFileError(str(path), f"cannot be written as Parquet: {error}") from error
    write_whole(path, out.getvalue())
