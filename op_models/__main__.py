"""The command ``python -m op_models FILE...``: what is in a ``.tflite`` file, and what a table covers of it.

:func:`describe` gives all of it as plain data (the ``--json`` output), :func:`text` makes it readable.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from op_models.console import with_output
from op_models.errors import ModelFileError, NotLiftableError, OpModelError

Description = dict[str, Any]


def describe(
    path: Path | str,
    *,
    table: Mapping[str, Sequence[str]] | None = None,
    arranged: bool = False,
    private_bytes: int | None = None,
    shared_bytes: int | None = None,
) -> Description:
    """Everything that the command tells about one file, as plain data.

    ``table`` maps the keys of a table to the contexts it has (:func:`table_keys`); cache sizes default to those of
    :class:`~op_models.arrange.CacheSizes`. Byte figures are those of the file's types.

    Raises :class:`OpModelError` for a file that cannot be read or measured.
    """
    from op_models import graph as graphs
    from op_models.arrange import CacheSizes
    from op_models.counts import graph_counts

    network = graphs.read(path)
    defaults = CacheSizes()
    caches = CacheSizes(private_bytes or defaults.private_bytes, shared_bytes or defaults.shared_bytes)
    groups = network.groups
    operations = _operations(network, caches, arranged=arranged)
    try:
        totals = graph_counts(network)
    except (ValueError, IndexError) as error:
        raise ModelFileError(str(path), f"an operator's tensors have impossible shapes ({error})") from error
    described: Description = {
        "file": str(path),
        "sha256": network.sha256,
        "file_bytes": len(network.data),
        "subgraphs": network.subgraphs,
        "inputs": [_tensor(network.tensors[index]) for index in network.inputs],
        "outputs": [_tensor(network.tensors[index]) for index in network.outputs],
        "operators": len(network.operators),
        "executed": len(network.live),
        "groups": len(groups),
        "dead": [_operator(network.operators[index]) for index in sorted(network.dead)],
        "folded": [_operator(network.operators[index]) for index in sorted(network.folded - network.dead)],
        "totals": {"macs": totals.macs, "params": totals.params, "weight_bytes": totals.weight_bytes},
        "operations": operations,
    }
    if table is not None:
        _cover(described, table)
    return described


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _operator(operator: Any) -> dict[str, Any]:
    return {"operator": operator.index, "name": operator.name}


def _operations(network: Any, caches: Any, *, arranged: bool) -> list[dict[str, Any]]:
    """A row for each distinct operation: the most MACs first, then the most bytes."""
    from op_models.arrange import Arrangement, arrange, contexts
    from op_models.counts import counts
    from op_models.feeds import why_real_data
    from op_models.lift import Lifter

    count: dict[str, int] = {}
    for group in network.groups:
        count[group.spec.key] = count.get(group.spec.key, 0) + 1
    lifter = Lifter(network)
    rows = []
    for group in {group.spec.key: group for group in network.groups}.values():
        spec = group.spec
        try:
            figures, found = counts(spec), contexts(spec, caches)
        except (ValueError, IndexError, TypeError) as error:
            raise ModelFileError(network.name, f"{spec.name} works on impossible shapes ({error})") from error
        row: dict[str, Any] = {
            "key": spec.key,
            "name": spec.name,
            "count": count[spec.key],
            "macs": figures.macs,
            "params": figures.params,
            "weight_bytes": figures.weight_bytes,
            "input_bytes": figures.input_bytes,
            "output_bytes": figures.output_bytes,
            "contexts": list(found),
            "custom": any(step.op.startswith("CUSTOM:") for step in spec.steps),
            "not_liftable": None,
            "real_data": why_real_data(spec),
        }
        try:
            lifter.op_model(group, Arrangement("hot", 1))
        except NotLiftableError as error:
            row["not_liftable"] = error.reason
        if arranged:
            row["arrangements"] = {}
            for context in found:
                models = arrange(spec, context, caches)
                row["arrangements"][context] = {"models": [model.name for model in models.models], "why": models.why}
        rows.append(row)
    rows.sort(key=lambda row: (-row["count"] * row["macs"], -row["count"] * row["output_bytes"], row["key"]))
    return rows


def _cover(described: Description, table: Mapping[str, Sequence[str]]) -> None:
    missing, groups, macs = [], 0, 0
    for row in described["operations"]:
        row["in_table"] = list(table.get(row["key"], ()))
        if row["in_table"]:
            groups += row["count"]
            macs += row["count"] * row["macs"]
        else:
            missing.append(row["key"])
    total = described["totals"]["macs"]
    described["coverage"] = {
        "groups": groups,
        "groups_frac": groups / described["groups"] if described["groups"] else 1.0,
        "macs_frac": macs / total if total else 1.0,
        "missing": missing,
    }


def table_keys(path: Path | str) -> dict[str, list[str]]:
    """Keys of a table (a LUT, or a run's operation table) and the contexts of each.

    Nothing but the fields ``key`` and ``context`` of its entries is read. Raises :class:`ModelFileError`-like
    :class:`TableFileError` where there are none.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        found: dict[str, list[str]] = {}
        for entry in content["entries"]:
            contexts = found.setdefault(str(entry["key"]), [])
            if entry.get("context") is not None:
                contexts.append(str(entry["context"]))
    except OSError as error:
        raise TableFileError(str(path), error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TableFileError(str(path), "no JSON object with a list of entries that have a key") from error
    return found


class TableFileError(OpModelError):
    """A file given as a table that is none."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is not a table of operations: {reason}")
        self.path, self.reason = path, reason


# --- text ------------------------------------------------------------------------------------------------------


def text(described: Description, width: int | None = None) -> str:
    """A description for reading; ``width`` cuts the lines of the table of operations."""
    totals = described["totals"]
    shapes = " + ".join(f"{tensor['dtype']}{tensor['shape']}" for tensor in described["inputs"])
    results = " + ".join(f"{tensor['dtype']}{tensor['shape']}" for tensor in described["outputs"])
    lines = [
        f"{described['file']}: {shapes or 'no input'} -> {results or 'no output'}",
        f"  {described['operators']} operators in the file, {described['executed']} of them are executed,"
        f" as {described['groups']} groups of {len(described['operations'])} kinds",
        f"  {totals['macs']:,} MACs, {totals['params']:,} parameters, {_size(totals['weight_bytes'])} of weights,"
        f" {_size(described['file_bytes'])} file, sha256 {described['sha256'][:12]}",
    ]
    if described["subgraphs"] > 1:
        lines.append(f"  {described['subgraphs']} subgraphs; only the first is described")
    for what, meaning in (("dead", "reach no output"), ("folded", "work on constants when the model is loaded")):
        if described[what]:
            lines.append(f"  {len(described[what])} operators {meaning}: {_names(described[what])}")
    lines += ["", *_table(described, width), *_notes(described)]
    return "\n".join(lines)


def _names(operators: Sequence[Mapping[str, Any]]) -> str:
    count: dict[str, int] = {}
    for operator in operators:
        count[operator["name"]] = count.get(operator["name"], 0) + 1
    return ", ".join(name if number == 1 else f"{number} x {name}" for name, number in count.items())


def _table(described: Description, width: int | None) -> list[str]:
    total = max(1, described["totals"]["macs"])
    covered = "coverage" in described
    header = f"{'count':>5} {'MACs each':>13} {'share':>6} {'weights':>9} {'in':>9} {'out':>9} {'contexts':12}"
    lines = [header + (" table       " if covered else "") + " operation"]
    for row in described["operations"]:
        line = (
            f"{row['count']:5d} {row['macs']:13,} {100 * row['count'] * row['macs'] / total:5.1f}%"
            f" {_size(row['weight_bytes']):>9} {_size(row['input_bytes']):>9} {_size(row['output_bytes']):>9}"
            f" {'+'.join(row['contexts']):12}"
        )
        if covered:
            line += f" {'+'.join(row['in_table']) or 'MISSING':12}"
        lines.append(f"{line} {row['key']}")
        for context, models in row.get("arrangements", {}).items():
            lines.append(f"      {context}: {models['why']} ({', '.join(models['models'])})")
    if width is None:
        return lines
    return [line if len(line) <= width else line[: width - 3] + "..." for line in lines]


def _notes(described: Description) -> list[str]:
    notes = []
    for row in described["operations"]:
        if row["not_liftable"]:
            notes.append(f"  cannot be measured alone: {row['name']}: {row['not_liftable']}")
        elif row["custom"]:
            notes.append(f"  custom: {row['name']} is measured only where the runtime knows it")
        if row["real_data"]:
            notes.append(f"  measured on the network's own data: {row['real_data']}")
    lines = ["", *dict.fromkeys(notes)] if notes else []
    if "coverage" in described:
        coverage = described["coverage"]
        lines += [
            "",
            f"  the table covers {coverage['groups']} of {described['groups']} groups"
            f" ({100 * coverage['groups_frac']:.1f} %), {100 * coverage['macs_frac']:.1f} % of the MACs",
        ]
    return lines


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


# --- command ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m op_models",
        description="Shows what is in .tflite files: the operations that a runtime executes (fused groups count once),"
        " how often, their MACs, parameters and bytes; what is dead or folded; what cannot be measured.",
        epilog="An operation that is not in the table: `python -m harness.profile --model FILE` measures it.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .tflite file")
    parser.add_argument("--lut", metavar="L", help="show what this table (LUT or operations.json) covers")
    parser.add_argument("--arrange", action="store_true", help="show how each operation would be measured, and why")
    parser.add_argument("--private-cache", type=_bytes, metavar="BYTES", help="of the measuring core (default 1 MiB)")
    parser.add_argument("--shared-cache", type=_bytes, metavar="BYTES", help="of its neighbours too (default 16 MiB)")
    parser.add_argument("--json", action="store_true", help="print a JSON list with one object a file")
    return parser


def _bytes(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of bytes, not {given!r}")
    return int(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 0, or 2 where a file or the table cannot be read (the other files are still shown)."""
    chosen = _parser().parse_args(arguments)
    return with_output(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    status = 0
    described = []
    try:
        table = None if chosen.lut is None else table_keys(chosen.lut)
    except OpModelError as error:
        print(error, file=sys.stderr)
        return 2
    for path in chosen.files:
        try:
            described.append(
                describe(
                    path,
                    table=table,
                    arranged=chosen.arrange,
                    private_bytes=chosen.private_cache,
                    shared_bytes=chosen.shared_cache,
                )
            )
        except OpModelError as error:
            print(error, file=sys.stderr)
            status = 2
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if chosen.json:
        print(json.dumps(described, indent=1))
    elif described:
        print("\n\n".join(text(one, width) for one in described))
    return status


if __name__ == "__main__":
    sys.exit(main())
