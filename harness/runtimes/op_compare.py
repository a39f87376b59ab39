"""Sets what operations took inside a network against what a table of op models says.

:func:`compare` is pure: timings of groups (:func:`harness.runtimes.op_profile.group_timings`) and a table in,
one row an operation out. :func:`read_table` reads a run's operation table or a LUT as far as that needs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.runtimes.op_profile import GroupTiming, ProfileMismatchError

# A table's operation: cost of one execution in us for each context that was measured, nearest memory first.
Contexts = Mapping[str, float]
CONTEXTS = ("hot", "cold", "far")


def cost_us(contexts: Contexts, mixture: tuple[float, float]) -> float:
    """Cost of one execution: ``hot + a * (cold - hot) + b * (far - cold)`` for the mixture (a, b).

    A context that was not measured costs as the one measured next to it, nearer the core first; nan where none was.
    """
    known = [contexts.get(name) for name in CONTEXTS]
    filled: list[float] = []
    for place, value in enumerate(known):
        nearer = [other for other in reversed(known[:place]) if other is not None]
        further = [other for other in known[place:] if other is not None]
        filled.append(value if value is not None else (nearer + further + [math.nan])[0])
    hot, cold, far = filled
    return hot + mixture[0] * (cold - hot) + mixture[1] * (far - cold)


@dataclass(frozen=True, slots=True)
class ComparedOperation:
    """One operation: its mean in the network against the table; ``table_us`` is None where the table lacks it."""

    key: str
    count: int
    in_network_us: float
    table_us: float | None
    contexts: dict[str, float]

    @property
    def difference_us(self) -> float | None:
        """Table minus network, over all executions."""
        return None if self.table_us is None else self.count * (self.table_us - self.in_network_us)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network's profile against a table. Sums run over what the table has; ``missing`` counts the other groups."""

    model: str
    in_network_us: float
    table_us: float
    missing: int
    missing_us: float
    operations: tuple[ComparedOperation, ...]

    @property
    def difference_frac(self) -> float:
        """Table over network, minus 1 (nan where the table covers nothing)."""
        return self.table_us / self.in_network_us - 1 if self.in_network_us > 0 else math.nan


def compare(
    timings: Sequence[GroupTiming],
    table: Mapping[str, Contexts],
    *,
    mixture: tuple[float, float] = (0.0, 0.0),
    statistic: Literal["quiet", "mean"] = "quiet",
    model: str = "",
) -> Comparison:
    """Per operation key, the in-network mean against the table; the largest total difference comes first.

    ``mixture`` says how far the network works from the core (:func:`op_models.locality.mixture`; nothing but ``hot``
    where it is left out, which is right for small networks).
    """
    count: Counter[str] = Counter()
    network: dict[str, float] = {}
    for timing in timings:
        count[timing.key] += 1
        latency_us = timing.latency_us_quiet if statistic == "quiet" else timing.latency_us_mean
        network[timing.key] = network.get(timing.key, 0.0) + latency_us
    operations = [
        ComparedOperation(
            key=key,
            count=number,
            in_network_us=network[key] / number,
            table_us=cost_us(table[key], mixture) if key in table else None,
            contexts=dict(table.get(key, {})),
        )
        for key, number in count.items()
    ]
    operations.sort(key=lambda row: (-abs(row.difference_us or 0.0), row.key))
    known = [row for row in operations if row.table_us is not None]
    unknown = [row for row in operations if row.table_us is None]
    return Comparison(
        model=model,
        in_network_us=sum(row.count * row.in_network_us for row in known),
        table_us=sum(row.count * row.table_us for row in known if row.table_us is not None),
        missing=sum(row.count for row in unknown),
        missing_us=sum(row.count * row.in_network_us for row in unknown),
        operations=tuple(operations),
    )


def read_table(path: Path | str) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Entries of a run's operation table or of a LUT, and the conditions they were measured under.

    Only ``key``, ``context`` and ``latency_us`` of the entries are read. Raises :class:`ProfileMismatchError` for a
    file that holds none.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text("utf-8"))
        found: dict[str, dict[str, float]] = {}
        for entry in content["entries"]:
            latency_us = float(entry["latency_us"])
            if not math.isfinite(latency_us):
                raise ValueError(f"a latency of {latency_us}")
            found.setdefault(str(entry["key"]), {})[str(entry["context"])] = latency_us
        conditions = content.get("conditions", content.get("header", {}).get("conditions", {}))
        return found, dict(conditions)
    except OSError as error:
        raise ProfileMismatchError(what=str(path), reason=error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{type(error).__name__}: {error}"  # not its repr: that of a UnicodeDecodeError holds the whole file
        raise ProfileMismatchError(what=str(path), reason=f"it is no table of operations ({told})") from error


def comparison_report(comparison: Comparison, most: int | None = None) -> str:
    """A comparison as text, the largest total differences first; ``most`` bounds the rows."""
    lines = [
        f"{comparison.model}: table {comparison.table_us:,.0f} us, in the network {comparison.in_network_us:,.0f} us"
        f" ({100 * comparison.difference_frac:+.1f} %)"
        + (f"; the table lacks {comparison.missing} groups of {comparison.missing_us:,.0f} us" if comparison.missing else ""),
        "",
        f"{'network us':>10} {'table us':>10} {'hot':>9} {'cold':>9} {'far':>9} {'count':>6} {'diff us':>9}  operation",
    ]
    shown = comparison.operations if most is None else comparison.operations[:most]
    for row in shown:
        difference = "missing" if row.difference_us is None else f"{row.difference_us:+.1f}"
        contexts = " ".join(f"{_figure(row.contexts.get(name)):>9}" for name in CONTEXTS)
        costs = f"{row.in_network_us:10.1f} {_figure(row.table_us):>10} {contexts}"
        lines.append(f"{costs} {row.count:6d} {difference:>9}  {row.key}")
    if len(shown) < len(comparison.operations):
        lines.append(f"... and {len(comparison.operations) - len(shown)} more operations")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
