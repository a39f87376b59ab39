"""Tells which differences between two tables are real: ``python -m luts.diff A B``."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luts.build import standard_error_us
from luts.errors import RequestError
from luts.intervals import Z_975, adjusted, normal_two_sided
from luts.schema import Entry, Lut, Setting

if TYPE_CHECKING:
    import argparse

SAME, FASTER, SLOWER, ONLY_A, ONLY_B, UNCLEAR = "same", "faster", "slower", "only in A", "only in B", "unclear"
CORRECTIONS = ("holm", "bh")
# Two measurements of one operation may both be right and still differ by their context: below this, do not tell.
AT_LEAST_FRAC = 0.01
# The same operation in another process of the same quiet host: about one percent.
REPEAT_SD = 0.01
LEAST_COMMON = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation in both tables: ``ratio`` is B over A with its 95 % interval (not corrected for their number).

    ``p_value`` is corrected. ``verdict`` says what B is against A; ``unclear`` is an entry that is not positive in one
    of the tables and has no ratio. What only one table holds has neither ratio nor p value.
    """

    key: str
    context: str
    setting: Setting
    verdict: str
    latency_us_a: float | None
    latency_us_b: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All entries of two tables, and the header fields in which they differ (both values as text)."""

    differences: tuple[Difference, ...]
    unlike: tuple[tuple[str, str, str], ...]
    correction: str

    def counts(self) -> dict[str, int]:
        """How often each verdict was given."""
        found = dict.fromkeys((SAME, FASTER, SLOWER, UNCLEAR, ONLY_A, ONLY_B), 0)
        for item in self.differences:
            found[item.verdict] += 1
        return found

    @property
    def median_ratio(self) -> float | None:
        """Median of B over A: what a whole device or run was slower by."""
        ratios = sorted(item.ratio for item in self.differences if item.ratio is not None)
        if not ratios:
            return None
        return (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2


def diff(a: Lut, b: Lut, *, correction: str = "bh", alpha: float = 0.05, at_least_frac: float = AT_LEAST_FRAC) -> Comparison:
    """Compare two tables entry by entry (same key, context and setting).

    A difference is real where its p value, corrected by ``holm`` (the chance of any false claim is ``alpha``) or ``bh``
    (the share of false claims is ``alpha``), is below ``alpha`` and the ratio is ``at_least_frac`` away from 1. Unlike
    conditions are no obstacle here: comparing them is what a diff is for; they are listed.
    """
    if correction not in CORRECTIONS:
        raise RequestError(f"no correction named {correction!r}; there are {' and '.join(CORRECTIONS)}")
    if not (0 < alpha < 1 and at_least_frac >= 0):
        raise RequestError("alpha must lie between 0 and 1, and the least difference must not be negative")
    entries_a, entries_b = _by_identity(a), _by_identity(b)
    both = [identity for identity in entries_a if identity in entries_b]
    measured = [_log_ratio(entries_a[identity], entries_b[identity]) for identity in both]
    scatter = run_scatter([item for item in measured if item is not None])
    ratios = [None if item is None else (item[0], math.hypot(item[1], scatter)) for item in measured]
    tested = [position for position, item in enumerate(ratios) if item is not None]
    raw = [normal_two_sided(item[0] / item[1]) for item in ratios if item is not None]
    p_values = dict(zip(tested, adjusted(raw, correction).tolist(), strict=True))
    found = []
    for position, (identity, item) in enumerate(zip(both, ratios, strict=True)):
        first, second = entries_a[identity], entries_b[identity]
        if item is None:
            found.append(Difference(*identity, UNCLEAR, first.latency_us, second.latency_us))
            continue
        log_ratio, error = item
        real = p_values[position] < alpha and abs(math.expm1(log_ratio)) >= at_least_frac
        found.append(
            Difference(
                *identity,
                (SLOWER if log_ratio > 0 else FASTER) if real else SAME,
                first.latency_us,
                second.latency_us,
                ratio=math.exp(log_ratio),
                ratio_low=math.exp(log_ratio - Z_975 * error),
                ratio_high=math.exp(log_ratio + Z_975 * error),
                p_value=p_values[position],
            )
        )
    for identity, entry in entries_a.items():
        if identity not in entries_b:
            found.append(Difference(*identity, ONLY_A, entry.latency_us, None))
    for identity, entry in entries_b.items():
        if identity not in entries_a:
            found.append(Difference(*identity, ONLY_B, None, entry.latency_us))
    return Comparison(tuple(found), _unlike(a, b), correction)


def run_scatter(ratios: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of log ratios beyond what the entries' own errors explain: what another process or hour changes.

    ``ratios`` are (log ratio, its standard error). An entry's interval comes from the rounds of one run and cannot know
    it. It is told from the middle of all common entries, so that the few that really differ do not count; with fewer
    than ``LEAST_COMMON`` of them, and at least, it is ``REPEAT_SD``.
    """
    if len(ratios) < LEAST_COMMON:
        return REPEAT_SD
    middle = statistics.median(log_ratio for log_ratio, _ in ratios)
    spread = 1.4826 * statistics.median(abs(log_ratio - middle) for log_ratio, _ in ratios)
    own = statistics.median(error**2 for _, error in ratios)
    return max(REPEAT_SD, math.sqrt(max(0.0, spread**2 - own)))


def _by_identity(lut: Lut) -> dict[tuple[str, str, Setting], Entry]:
    return {(entry.key, entry.context, entry.setting): entry for entry in lut.entries}


def _log_ratio(a: Entry, b: Entry) -> tuple[float, float] | None:
    """log(B / A) and its standard error; None where one is not positive."""
    if a.latency_us <= 0 or b.latency_us <= 0:
        return None
    error = math.hypot(standard_error_us(a) / a.latency_us, standard_error_us(b) / b.latency_us)
    return math.log(b.latency_us / a.latency_us), error


def _unlike(a: Lut, b: Lut) -> tuple[tuple[str, str, str], ...]:
    found = []
    for part in ("conditions", "device"):
        first, second = getattr(a.header, part), getattr(b.header, part)
        for name in first.__slots__:
            if name != "facts" and getattr(first, name) != getattr(second, name):
                found.append((f"{part}.{name}", str(getattr(first, name)), str(getattr(second, name))))
    return tuple(found)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "correction": comparison.correction,
        "counts": comparison.counts(),
        "median_ratio": comparison.median_ratio,
        "unlike": [{"field": name, "a": first, "b": second} for name, first, second in comparison.unlike],
        "differences": [
            {
                "key": item.key,
                "context": item.context,
                "delegate": item.setting.delegate,
                "threads": item.setting.threads,
                "core_cluster": item.setting.core_cluster,
                "verdict": item.verdict,
                "latency_us_a": item.latency_us_a,
                "latency_us_b": item.latency_us_b,
                "ratio": item.ratio,
                "ratio_low": item.ratio_low,
                "ratio_high": item.ratio_high,
                "p_value": item.p_value,
            }
            for item in comparison.differences
        ],
    }


def as_text(comparison: Comparison, *, everything: bool) -> str:
    """The real differences (or all) as a table, the largest first, and a line of counts."""
    from luts.command import table_text

    shown = [item for item in comparison.differences if everything or item.verdict != SAME]
    shown.sort(key=lambda item: -abs(math.log(item.ratio)) if item.ratio is not None else 0.0)
    rows = [
        (
            "" if item.latency_us_a is None else f"{item.latency_us_a:.2f}",
            "" if item.latency_us_b is None else f"{item.latency_us_b:.2f}",
            "" if item.ratio is None else f"{item.ratio:.3f}",
            "" if item.ratio_low is None else f"{item.ratio_low:.3f}..{item.ratio_high:.3f}",
            "" if item.p_value is None else f"{item.p_value:.1e}",
            item.verdict,
            item.context,
            item.key,
        )
        for item in shown
    ]
    lines = []
    if rows:
        lines.append(table_text(("A us", "B us", "B/A", "95 %", "p", "B is", "context", "operation"), rows, right=5))
    counts = ", ".join(f"{count} {verdict}" for verdict, count in comparison.counts().items() if count)
    median = comparison.median_ratio
    lines.append((counts or "nothing to compare") + ("" if median is None else f"; median B/A {median:.3f}"))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m luts.diff",
        description="Compare two tables: which operations became faster or slower, and which differences are noise.",
        epilog="exit status: 0 compared, 2 not.",
    )
    parser.add_argument("a", metavar="A", help="the table to compare with")
    parser.add_argument("b", metavar="B", help="the table that is judged")
    parser.add_argument("--correction", choices=CORRECTIONS, default="bh", help="for many comparisons (bh)")
    parser.add_argument("--alpha", type=float, default=0.05, help="share of false claims that is accepted (0.05)")
    parser.add_argument(
        "--at-least", type=float, default=100 * AT_LEAST_FRAC, metavar="PERCENT", help="tell no smaller difference (1)"
    )
    parser.add_argument("--all", action="store_true", help="show the entries that are the same, too")
    parser.add_argument("--json", action="store_true", help="print JSON, all entries")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, guarded

    arguments = _parser().parse_args(argv)

    def work() -> int:
        from luts.storage import load

        found = diff(
            load(arguments.a),
            load(arguments.b),
            correction=arguments.correction,
            alpha=arguments.alpha,
            at_least_frac=arguments.at_least / 100,
        )
        print(json.dumps(as_json(found), indent=1) if arguments.json else as_text(found, everything=arguments.all))
        for name, first, second in found.unlike:
            print(f"note: {name} differs: {first} in A, {second} in B", file=sys.stderr)
        print(f"next: python -m luts.lint {arguments.b}", file=sys.stderr)
        return DONE

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
