"""README's commands run, exit as README says, and print what README shows; the names and links in it exist.

``python -m tests.test_readme`` prints the blocks with what the commands print now, ready to be pasted. In shown output
a line of dots stands for anything; numbers, hashes and flags may differ; runs of blanks and dashes count as one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from op_models.layers import NetworkBuilder

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
ANYTHING = "..."


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a ``console`` block: the lines that README shows behind it, and the status that it must end with."""

    line: str
    shown: tuple[str, ...]
    status: int


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    command: Command
    status: int
    printed: str


def blocks(text: str) -> list[list[Command]]:
    """The ``console`` and ``python`` blocks of a page.

    ``$ echo $?`` is no command: what it shows is the status of the one before.
    """
    found = []
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            found.append([Command(f"python -c {shlex.quote(block)}", (), 0)])
            continue
        commands: list[Command] = []
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *shown = part.splitlines()
            if line == "echo $?":
                commands[-1] = Command(commands[-1].line, commands[-1].shown, int(shown[0]))
            else:
                commands.append(Command(line, tuple(each for each in shown if each.strip()), 0))
        found.append(commands)
    return found


def network(path: Path, *, window: int) -> None:
    """A network small enough to be measured in a moment."""
    builder = NetworkBuilder(seed=window)
    x = builder.relu(builder.conv2d(builder.input((1, 16, 16, 4)), 8, window))
    x = builder.conv2d(builder.depthwise(x, 3), 8, 1)
    path.write_bytes(builder.build(builder.max_pool(x, 2, 2, "same")))


def run_blocks(directory: Path) -> list[list[Ran]]:
    """Run README's commands, in order, in a directory that holds what they speak of."""
    network(directory / "my.tflite", window=3)
    network(directory / "other.tflite", window=5)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    ran: list[list[Ran]] = []
    for commands in blocks(README.read_text(encoding="utf-8")):
        ran.append([])
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", command.line],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ran[-1].append(Ran(command, done.returncode, done.stdout))
    return ran


def masked(line: str) -> str:
    """A line without what may differ from one run to the next: a busy machine also adds flags, such as ``[wide]``."""
    line = re.sub(r"\s+\[[a-z, -]+\]$", "", line)
    line = re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{7,}\b", "#", line)
    return re.sub(r"[\s─━-]+", " ", re.sub(r"[-+]?\d[\d.,:]*", "#", line)).strip()


COMMANDS = [command for commands in blocks(README.read_text(encoding="utf-8")) for command in commands]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    return [each for commands in run_blocks(tmp_path_factory.mktemp("readme")) for each in commands]


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[command.line[:80] for command in COMMANDS])
def test_a_command_of_readme_does_what_readme_shows(ran: list[Ran], number: int) -> None:
    done = ran[number]
    assert done.status == done.command.status, done.printed
    printed = {masked(line) for line in done.printed.splitlines()}
    missing = [line for line in done.command.shown if line.strip() != ANYTHING and masked(line) not in printed]
    assert not missing, done.printed


def named(pattern: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for name in re.findall(pattern, page.read_text(encoding="utf-8")):
            yield page, name


def test_every_module_that_a_page_names_exists() -> None:
    missing = [(page.name, name) for page, name in named(r"python -m ([a-z_.]*[a-z_])") if not importlib.util.find_spec(name)]
    assert not missing


def test_every_link_leads_to_a_file() -> None:
    links = [(page, link) for page, link in named(r"\]\(([^)#:]+)\)")]
    assert links
    assert not [link for page, link in links if not (page.parent / link).exists()]


def test_every_target_that_a_page_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {name for _, name in named(r"`make ([a-z]+)|^make ([a-z]+)") for name in name if name} <= targets


def test_a_shown_status_belongs_to_the_command_before_it() -> None:
    ((first, second),) = blocks("```console\n$ false\noh\n$ echo $?\n1\n$ true\n```\n")
    assert first == Command("false", ("oh",), 1)
    assert second == Command("true", (), 0)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("12.5 us   ADD", "  7 us ADD", True),
        ("run 3fa9c01d2b", "run 88e01aa412", True),
        ("table -0.5 %", "table +12 %", True),
        ("ADD  [wide, unsteady]", "ADD", True),
        ("ADD [1x8]", "ADD", False),
        ("ADD", "MUL", False),
        ("defaced", "effaced", False),
    ],
)
def test_numbers_may_differ_and_words_may_not(one: str, other: str, alike: bool) -> None:
    assert (masked(one) == masked(other)) == alike


def main() -> None:
    """Print README's blocks with what their commands print now."""
    with tempfile.TemporaryDirectory() as directory:
        for commands in run_blocks(Path(directory)):
            print("```console")
            for done in commands:
                print(f"$ {done.command.line}\n{done.printed}", end="")
                if done.status:
                    print(f"$ echo $?\n{done.status}")
            print("```\n")


if __name__ == "__main__":
    main()
