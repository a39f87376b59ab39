"""Writes the figures of ``benchmarks/figures.json`` into README, between two markers.

The file is one :class:`Figures`. A field that does not apply is null; ``goal`` and ``reached`` are null for a baseline.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from harness.record import Record

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
NOTHING_YET = "Nothing has been measured yet: `make bench` fills this place."
ROOT = Path(__file__).resolve().parent.parent
DONE, DIFFERENT, BAD_REQUEST = 0, 1, 2


class FiguresError(Exception):
    """Figures, or a README, that cannot be used; ``path`` is the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class Accuracy(Record):
    """How well one method predicts one set of networks that it has not seen; per cent throughout.

    ``covered_pct`` is the share of networks inside their 95 % prediction interval and ``half_width_pct`` the median
    half-width of that interval, where the method states one. ``seed`` drew the networks, if anything drew them.
    """

    networks: str
    method: str
    count: int
    seed: int | None
    mape_pct: float
    bias_pct: float
    worst_pct: float
    within_5_pct: float
    within_10_pct: float
    kendall: float | None
    covered_pct: float | None
    half_width_pct: float | None
    goal: str | None
    reached: bool | None


class Speed(Record):
    """How long something takes, or how much of it is done in a second: ``value`` in ``unit``."""

    what: str
    value: float
    unit: str
    goal: str | None
    reached: bool | None


class Figures(Record):
    """All figures of one device, measured with one state of the program (``commit``)."""

    format: Literal["figures"]
    version: Literal[1]
    date: str
    device: str
    commit: str | None
    accuracy: tuple[Accuracy, ...]
    speed: tuple[Speed, ...]


def read(path: Path) -> Figures:
    """The figures in a file. Raises :class:`FiguresError`, which names each field that is not as described."""
    try:
        return Figures.model_validate_json(path.read_bytes())
    except OSError as error:
        raise FiguresError(path, f"cannot be read ({error.strerror})") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors())
        raise FiguresError(path, wrong) from error


def markdown(figures: Figures) -> str:
    """The figures as Markdown: a sentence on where they come from, and two tables."""
    commit = f", at commit {figures.commit[:10]}" if figures.commit else ""
    return "\n\n".join(
        (
            f"Measured on {figures.date}{commit}, on {figures.device}.",
            _table(
                (
                    "networks",
                    "method",
                    "n",
                    "MAPE %",
                    "bias %",
                    "worst %",
                    "±5 %",
                    "±10 %",
                    "Kendall",
                    "in interval %",
                    "half-width %",
                    "seed",
                    "goal",
                    "",
                ),
                [
                    (
                        row.networks,
                        row.method,
                        str(row.count),
                        _number(row.mape_pct, 2),
                        _number(row.bias_pct, 2, sign="+"),
                        _number(row.worst_pct, 1),
                        _number(row.within_5_pct, 0),
                        _number(row.within_10_pct, 0),
                        _number(row.kendall, 3),
                        _number(row.covered_pct, 0),
                        _number(row.half_width_pct, 1),
                        "–" if row.seed is None else str(row.seed),
                        row.goal or "–",
                        _verdict(row.reached),
                    )
                    for row in figures.accuracy
                ],
            ),
            _table(
                ("what", "value", "goal", ""),
                [(row.what, f"{row.value:.3g} {row.unit}", row.goal or "–", _verdict(row.reached)) for row in figures.speed],
            ),
        )
    )


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _verdict(reached: bool | None) -> str:
    return "" if reached is None else "reached" if reached else "**missed**"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heads, ("---",) * len(heads), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def filled(readme: str, text: str, path: Path) -> str:
    """``readme`` with ``text`` between the markers. Raises :class:`FiguresError` where it does not hold each once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise FiguresError(path, f"expected {BEGIN} and then {END}, once each")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fill README, or with ``--check`` only say whether it holds what the figures say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Write the figures into README.")
    parser.add_argument("--figures", type=Path, default=ROOT / "benchmarks" / "figures.json", metavar="FILE")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where README says something else")
    asked = parser.parse_args(argv)
    try:
        text = markdown(read(asked.figures)) if asked.figures.exists() else NOTHING_YET
        readme = asked.readme.read_text(encoding="utf-8")
        wanted = filled(readme, text, asked.readme)
    except (FiguresError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_REQUEST
    if wanted == readme:
        return DONE
    if asked.check:
        print(f"{asked.readme} does not say what {asked.figures} says; run python -m benchmarks.table", file=sys.stderr)
        return DIFFERENT
    asked.readme.write_text(wanted, encoding="utf-8")
    print(asked.readme)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
