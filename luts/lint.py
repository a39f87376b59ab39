"""Finds what should not be believed in a table: ``python -m luts.lint TABLE``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luts import fields, storage
from luts.errors import RequestError
from luts.intervals import normal_two_sided
from luts.schema import CONTEXTS, Entry, Lut
from op_models.errors import SpecError
from op_models.spec import OpSpec, TensorSpec

if TYPE_CHECKING:
    import argparse

ERROR, WARNING = "error", "warning"
# What is found, under the name that a finding carries.
RULES = {
    "non-finite": (ERROR, "a latency is NaN or infinite"),
    "negative": (ERROR, "a latency is surely below 0"),
    "missing": (ERROR, "a network or space asks for an operation that the table lacks"),
    "key-syntax": (ERROR, "a key is no operation"),
    "not-positive": (WARNING, "a latency is not above 0, but its interval reaches above"),
    "wide-interval": (WARNING, "the interval is wide"),
    "outside-interval": (WARNING, "a latency lies outside its own interval"),
    "cold-below-hot": (WARNING, "an operation is surely faster in a colder context"),
    "non-monotonic-kernel": (WARNING, "a larger kernel is surely faster"),
    "non-monotonic-channels": (WARNING, "more channels are surely faster"),
    "non-monotonic-size": (WARNING, "a larger image is surely faster"),
    "flagged": (WARNING, "the entry was flagged when it was measured or merged"),
}
# Flags of a run that repeat what a rule here says by its own measure.
_TOLD_BY_A_RULE = frozenset({"wide", "not-positive"})
WIDE_FRAC = 0.10
# Below this a wide interval changes no prediction.
WIDE_FROM_US = 0.5
SURELY_P = 0.01


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the rule's name, ``error`` or ``warning``, the operation, and a sentence."""

    rule: str
    severity: str
    key: str
    message: str
    context: str | None = None


def _finding(rule: str, key: str, message: str, context: str | None = None) -> Finding:
    return Finding(rule, RULES[rule][0], key, message, context)


def lint(lut: Lut, *, wanted_keys: Iterable[str] = (), wide_frac: float = WIDE_FRAC) -> tuple[Finding, ...]:
    """All findings, errors first. ``wanted_keys`` are operations that every setting of the table should hold."""
    found: list[Finding] = []
    for entry in lut.entries:
        found.extend(_of_entry(entry, wide_frac))
    finite = [entry for entry in lut.entries if math.isfinite(entry.latency_us)]
    found.extend(_key_syntax(lut.entries))
    found.extend(_cold_below_hot(finite))
    found.extend(_non_monotonic(finite))
    found.extend(_missing(lut, wanted_keys))
    return tuple(sorted(found, key=lambda item: (item.severity != ERROR, item.rule, item.key, item.context or "")))


def _of_entry(entry: Entry, wide_frac: float) -> Iterable[Finding]:
    at = entry.context
    numbers = (entry.latency_us, entry.latency_us_low, entry.latency_us_high, *entry.latency_us_replicates)
    if not all(map(math.isfinite, numbers)):
        yield _finding("non-finite", entry.key, f"latency {entry.latency_us} us or its interval is not finite", at)
        return
    interval = f"{entry.latency_us_low:g} to {entry.latency_us_high:g} us"
    if entry.latency_us_high < 0:
        yield _finding("negative", entry.key, f"latency {entry.latency_us:g} us ({interval}) is below 0", at)
    elif entry.latency_us <= 0:
        yield _finding("not-positive", entry.key, f"latency {entry.latency_us:g} us ({interval}) is not above 0", at)
    elif entry.latency_us >= WIDE_FROM_US and entry.relative_half_width > wide_frac:
        told = f"{entry.latency_us:g} us is known to +-{100 * entry.relative_half_width:.0f} % only ({interval})"
        yield _finding("wide-interval", entry.key, told, at)
    if not entry.latency_us_low <= entry.latency_us <= entry.latency_us_high:
        yield _finding("outside-interval", entry.key, f"{entry.latency_us:g} us lies outside {interval}", at)
    if flags := [flag for flag in entry.flags if flag not in _TOLD_BY_A_RULE]:
        yield _finding("flagged", entry.key, f"flagged {', '.join(flags)}", at)


def _key_syntax(entries: Sequence[Entry]) -> Iterable[Finding]:
    for key in dict.fromkeys(entry.key for entry in entries):
        try:
            OpSpec.from_key(key)
        except SpecError as error:
            yield _finding("key-syntax", key, error.reason)


def _cold_below_hot(entries: Sequence[Entry]) -> Iterable[Finding]:
    from luts.build import standard_error_us

    known = {(entry.key, entry.setting, entry.context): entry for entry in entries}
    for cold in entries:
        warmer = CONTEXTS[: CONTEXTS.index(cold.context)]
        warm = next((known[at] for name in reversed(warmer) if (at := (cold.key, cold.setting, name)) in known), None)
        if warm is None or cold.latency_us >= warm.latency_us:
            continue
        gap = warm.latency_us - cold.latency_us
        error = math.hypot(standard_error_us(cold), standard_error_us(warm))
        if gap > 0.02 * abs(warm.latency_us) and normal_two_sided(gap / error) < SURELY_P:
            told = f"{cold.context} {cold.latency_us:g} us, {warm.context} {warm.latency_us:g} us"
            yield _finding("cold-below-hot", cold.key, told, cold.context)


@dataclass(frozen=True, slots=True)
class _Sized:
    """An operation without its sizes (``template``) and its sizes by kind."""

    template: tuple[Any, ...]
    kernel: tuple[int, ...]
    channels: tuple[int, ...]
    size: tuple[int, ...]


def _sized(key: str) -> _Sized | None:
    """Sizes of an operation by kind; None for what has shapes that are no NHWC images, or constants that decide."""
    try:
        spec = OpSpec.from_key(key)
    except SpecError:
        return None
    template: list[Any] = []
    kernel: list[int] = []
    channels: list[int] = []
    size: list[int] = []
    for step in spec.steps:
        template.append((step.op, step.options))
        for tensor in (*step.inputs, *step.outputs):
            if not isinstance(tensor, TensorSpec):
                template.append(tensor)
                continue
            template.append((tensor.role, tensor.dtype, tensor.quant, len(tensor.shape), tensor.values))
            if len(tensor.shape) == 4 and tensor.role == "act":
                size.extend(tensor.shape[:3])
                channels.append(tensor.shape[3])
            elif len(tensor.shape) == 4:
                kernel.extend(tensor.shape[1:3])
                channels.extend((tensor.shape[0], tensor.shape[3]))
            else:
                channels.extend(tensor.shape)
    return _Sized(tuple(template), tuple(kernel), tuple(channels), tuple(size))


def _non_monotonic(entries: Sequence[Entry]) -> Iterable[Finding]:
    """For each kind of size: operations alike in all else, where the larger one is surely faster.

    Only intervals that do not overlap are told, and of all smaller ones only the one that shows it most.
    """
    families: dict[tuple[Any, ...], list[tuple[np.ndarray[Any, np.dtype[np.int64]], Entry]]] = {}
    for entry in entries:
        sized = _sized(entry.key)
        if sized is None:
            continue
        for kind in ("kernel", "channels", "size"):
            varied = getattr(sized, kind)
            others = tuple(getattr(sized, other) for other in ("kernel", "channels", "size") if other != kind)
            if varied:
                family = (kind, entry.context, entry.setting, sized.template, others)
                families.setdefault(family, []).append((np.array(varied, dtype=np.int64), entry))
    for (kind, *_), members in families.items():
        if len(members) > 1:
            yield from _within_family(kind, members)


def _within_family(kind: str, members: Sequence[tuple[np.ndarray[Any, np.dtype[np.int64]], Entry]]) -> Iterable[Finding]:
    sizes = np.array([varied for varied, _ in members])
    low = np.array([entry.latency_us_low for _, entry in members])
    for varied, entry in members:
        smaller = (sizes <= varied).all(axis=1) & (sizes < varied).any(axis=1)
        beyond = np.where(smaller, low - entry.latency_us_high, -np.inf)
        worst = int(beyond.argmax())
        if beyond[worst] > 0:
            other = members[worst][1]
            told = f"{entry.latency_us:g} us, but the smaller {other.key} takes {other.latency_us:g} us"
            yield _finding(f"non-monotonic-{kind}", entry.key, told, entry.context)


def _missing(lut: Lut, wanted_keys: Iterable[str]) -> Iterable[Finding]:
    wanted = dict.fromkeys(wanted_keys)
    for setting in lut.settings:
        table = lut.table(delegate=setting.delegate, threads=setting.threads, core_cluster=setting.core_cluster)
        for miss in table.misses(wanted):
            told = "is missing" + (f" with {setting}" if len(lut.settings) > 1 else "")
            if miss.reason:
                told += f" (it was tried: {miss.reason})"
            if miss.nearest:
                told += f"; the nearest is {miss.nearest[0]}"
            yield _finding("missing", miss.key, told)


def keys_of_models(paths: Sequence[Path | str]) -> tuple[str, ...]:
    """Every operation that networks ask for, each once. Raises :class:`~op_models.errors.OpModelError`."""
    from op_models import graph as graphs

    return tuple(dict.fromkeys(group.spec.key for path in paths for group in graphs.groups(graphs.read(path))))


def keys_of_spaces(names: Sequence[str], precision: str = "float32") -> tuple[str, ...]:
    """Every operation that search spaces can ask for, each once. Raises :class:`~luts.errors.RequestError`."""
    if not names:
        return ()
    from op_models.layers import PRECISIONS
    from op_models.spaces.registry import SPACES

    for name in names:
        if name not in SPACES:
            raise RequestError(f"no search space named {name!r}; there are {', '.join(sorted(SPACES))}")
    known = next((choice for choice in PRECISIONS if choice == precision), None)
    if known is None:
        raise RequestError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(key for name in names for key in sorted(SPACES[name].operation_keys(known))))


def _parser() -> argparse.ArgumentParser:
    import argparse

    rules = "\n".join(f"  {name:24} {severity:8} {told}" for name, (severity, told) in RULES.items())
    parser = argparse.ArgumentParser(
        prog="python -m luts.lint",
        description="Find what should not be believed in a table.",
        epilog=f"rules:\n{rules}\n\nexit status: 0 no errors, 1 errors found, 2 no table to check.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lut", metavar="TABLE", help="the table to check")
    parser.add_argument("--model", nargs="+", default=[], metavar="NETWORK.tflite", help="operations it must hold")
    parser.add_argument("--space", action="append", default=[], metavar="NAME", help="search space it must cover")
    parser.add_argument("--precision", default="float32", help="precision of the spaces' networks (float32)")
    parser.add_argument("--wide", type=float, default=100 * WIDE_FRAC, metavar="PERCENT", help="half-width that is too wide (10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    from luts.command import DONE, FOUND_WRONG, guarded, table_text

    arguments = _parser().parse_args(argv)

    def work() -> int:
        # NaN is no JSON and no table is written with it, but a damaged or foreign file may hold it: that is a finding.
        document = fields.read_json(arguments.lut, allow_non_finite=True)
        lut = storage.parse(document, str(arguments.lut), allow_non_finite=True)
        wanted = [*keys_of_models(arguments.model), *keys_of_spaces(arguments.space, arguments.precision)]
        findings = lint(lut, wanted_keys=wanted, wide_frac=arguments.wide / 100)
        errors = sum(item.severity == ERROR for item in findings)
        if arguments.json:
            found = {
                "lut": str(arguments.lut),
                "errors": errors,
                "warnings": len(findings) - errors,
                "findings": [{name: getattr(item, name) for name in item.__slots__} for item in findings],
            }
            print(json.dumps(found, indent=1))
        elif findings:
            rows = [(item.severity, item.rule, item.context or "", item.message, item.key) for item in findings]
            print(table_text(("severity", "rule", "context", "what", "operation"), rows))
        print(f"{errors} errors, {len(findings) - errors} warnings in {len(lut.entries)} entries", file=sys.stderr)
        missing = any(item.rule == "missing" for item in findings)
        if missing and arguments.model:
            print(f"next: python -m harness.profile --model {' '.join(arguments.model)}", file=sys.stderr)
        else:
            print(f"next: python -m luts.predict NETWORK.tflite --lut {arguments.lut}", file=sys.stderr)
        return FOUND_WRONG if errors else DONE

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
