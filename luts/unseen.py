"""Draws networks that no table has seen, and says what the thesis' table would count in each of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luts.errors import RequestError
from luts.storage import write_whole
from op_models import graph as graphs
from op_models.elp_nas import KINDS
from op_models.layers import Precision
from op_models.spaces.base import DisconnectedNetworkError
from op_models.spaces.enas import OPERATIONS, EnasGenotype, EnasMicro
from op_models.spaces.registry import SPACES

if TYPE_CHECKING:
    from luts.lookup import CostTable
    from luts.measured import Measurements

SPACE = "enas-micro"
# How many are drawn for each one wanted before giving up on finding networks that the table covers.
_PATIENCE = 20
# Weights are drawn anew, by other seeds than those of the networks that operations were lifted from.
_WEIGHT_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network in a file, the space that it was drawn from, and its count of each of the thesis' operations."""

    path: Path
    space: str
    paper_counts: tuple[tuple[str, float], ...]


def draw(
    table: CostTable, directory: Path, *, count: int, seed: int, space: str = SPACE, precision: Precision = "float32"
) -> tuple[Drawn, ...]:
    """Write ``count`` random networks of a family of spaces, each depth in turn, into ``directory``.

    Only networks whose operations are all in the table are kept. The seed decides them. Raises
    :class:`~luts.errors.RequestError` for an unknown space or where the table covers too few of its networks.
    """
    if space not in SPACES:
        raise RequestError(f"no search space named {space!r}; there are {', '.join(sorted(SPACES))}")
    if count < 1:
        raise RequestError(f"{count} networks cannot be drawn")
    rng = np.random.default_rng([seed, 1])
    members = SPACES[space].make()
    found: list[Drawn] = []
    drawn = set()  # by canonical form: the same network twice says nothing new
    for attempt in range(_PATIENCE * count):
        if len(found) == count:
            break
        member = members[len(found) % len(members)]
        genotype = member.random(rng)
        form = (member.name, member.canonical(genotype))
        if form in drawn:
            continue
        drawn.add(form)
        try:
            data = member.graph(genotype, precision, _WEIGHT_SEED + attempt)
        except DisconnectedNetworkError:
            continue
        keys = [group.spec.key for group in graphs.parse(data, member.name).groups]
        if any(key not in table for key in keys):
            continue
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{member.name}-{len(found):03d}.tflite"
        write_whole(path, data)
        counts = paper_counts(genotype, member) if isinstance(member, EnasMicro) else ()
        found.append(Drawn(path, member.name, counts))
    if len(found) < count:
        raise RequestError(
            f"the table covers {len(found)} of the {_PATIENCE * count} networks that were drawn from {space}; "
            "name networks with --model, or measured ones with --measured"
        )
    return tuple(found)


def paper_counts(genotype: EnasGenotype, space: EnasMicro) -> tuple[tuple[str, float], ...]:
    """How often each operation of the thesis' table occurs in a network, as its predictor counts.

    A separable convolution is applied twice and so costs its entry twice; identity costs nothing; an operation of a
    reduction layer counts at the shape that it puts out.
    """
    found: Counter[str] = Counter()
    size, filters = space.size, space.filters
    for layer in range(3 * space.depth + 2):
        cell = genotype.normal
        if layer in (space.depth, 2 * space.depth + 1):
            size, filters, cell = size // 2, 2 * filters, genotype.reduction
        for _, first, _, second in cell:
            for operation in (OPERATIONS[first], OPERATIONS[second]):
                if operation in KINDS:
                    found[f"{operation}@{size}x{size}x{filters}"] += 2 if operation.startswith("sep") else 1
    return tuple(sorted((name, float(count)) for name, count in found.items()))


def with_paper(measurements: Measurements, drawn: tuple[Drawn, ...], table: CostTable) -> Measurements:
    """Measurements with the space and the thesis' counts of each drawn network, and the thesis' table if there is one.

    Of several chain lengths the longest counts, as published.
    """
    known = {str(item.path.resolve()): item for item in drawn}
    networks = []
    for network in measurements.networks:
        item = known.get(str(Path(network.model).resolve()))
        networks.append(network if item is None else replace(network, group=item.space, paper_counts=item.paper_counts))
    longest = {}
    for operation in sorted(table.lut.elp_nas, key=lambda item: item.n):
        if operation.setting == table.setting:
            longest[operation.name] = operation
    needed = {name for item in drawn for name, _ in item.paper_counts}
    if not needed <= longest.keys():
        return replace(measurements, networks=tuple(networks))
    return replace(
        measurements,
        networks=tuple(networks),
        paper_mean_us=tuple((name, item.latency_us_mean_wall) for name, item in longest.items()),
        paper_ours_us=tuple((name, item.latency_us_level) for name, item in longest.items()),
    )
