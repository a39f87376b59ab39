"""The project as it is installed: what it declares and carries, what a process pays for, which skips are permitted."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("analysis", "luts", "harness", "op_models")
# Import names that differ from the name under which a package is installed.
DISTRIBUTION = {"serial": "pyserial", "tensorflow": "tensorflow-cpu", "keras": "tensorflow-cpu"}
# Who may hold an interpreter: the measuring process, runtimes, and what needs a network's real activations.
INTERPRETER_MODULES = ("harness/devices/", "harness/runtimes/", "op_models/convert.py", "op_models/feeds.py")


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> set[str]:
    """Names of the distributions in a setup.cfg list."""
    return {canonicalize_name(Requirement(line).name) for line in text.splitlines() if line}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Full names of everything imported, also ``package.name`` of a ``from package import name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def loaded_by(statement: str, *names: str) -> list[str]:
    """Which of some modules a fresh process has loaded after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_pyproject_says_only_how_to_build() -> None:
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == {"build-system"}


def test_every_third_party_import_is_declared() -> None:
    options, extras = config()["options"], config()["options.extras_require"]
    declared = requirements(options["install_requires"]).union(*map(requirements, extras.values()))
    undeclared = {
        f"{path}: {name}"
        for path, tree in sources()
        for name in {module.split(".")[0] for module in imported_modules(tree)}
        if name not in sys.stdlib_module_names
        and name not in PACKAGES
        and canonicalize_name(DISTRIBUTION.get(name, name)) not in declared
    }
    assert not undeclared


def test_interpreters_live_in_few_modules() -> None:
    elsewhere = [
        path
        for path, tree in sources()
        if any(module.startswith("ai_edge_litert.interpreter") for module in imported_modules(tree))
        and not path.startswith(INTERPRETER_MODULES)
    ]
    assert not elsewhere


def test_predicting_loads_numpy_and_no_heavier_package() -> None:
    heavy = (
        "ai_edge_litert.interpreter",
        "pandas",
        "pyarrow",
        "pydantic",
        "rich",
        "scipy",
        "tensorflow",
        "harness.runner",
    )
    assert loaded_by("import luts.predict, luts.storage, op_models.graph", *heavy, "numpy") == ["numpy"]


def test_every_constraint_pins_one_version() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and not pin.endswith("*") for pin in pins)
    assert len({pin.split("==")[0].lower() for pin in pins}) == len(pins)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy so that no build folder is left in the checkout."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "device_scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(out), str(copy))
    subprocess.run(pip, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_carries_every_module_and_every_data_file(wheel: Path) -> None:
    data = ("harness/plans/*.toml", "luts/*.json", "device_scripts/*")
    wanted = {path.relative_to(ROOT).as_posix() for pattern in data for path in ROOT.glob(pattern) if path.is_file()}
    wanted |= {path for path, _ in sources()}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]


@pytest.mark.slow
def test_an_installed_wheel_plans_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """The dependencies come from this environment; the packages must come from the wheel, and from nowhere else."""
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    (library,) = (environment / "lib").glob("python3*/site-packages")
    # A path in a .pth file, unlike a site directory, runs no .pth files of its own (such as an editable install's).
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    found = subprocess.run(
        [python, "-c", "import harness, sys; sys.exit(not harness.__path__[0].startswith(sys.prefix))"],
        cwd=empty, check=False,
    )  # fmt: skip
    assert found.returncode == 0
    done = subprocess.run([python, "-m", "harness.profile", "--dry-run"], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


TESTS = {
    "test_some.py": """
import pytest

def test_that_runs():
    pass

def test_that_is_skipped():
    pytest.skip("no phone here")

@pytest.mark.xfail(reason="not written yet")
def test_that_fails():
    assert False
""",
    "test_module.py": "import pytest; pytest.skip('not on this day', allow_module_level=True)",
    "test_import.py": "import pytest; pytest.importorskip('no_such_module', reason='it is not installed')",
}
REASONS = ("no phone here", "not written yet", "not on this day", "it is not installed")


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("listed", [REASONS, REASONS[:1]])
def test_a_skip_for_an_unlisted_reason_fails_the_session(tmp_path: Path, listed: tuple[str, ...], workers: str) -> None:
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    allowed = "".join(f"\n    {reason}" for reason in listed)
    (tmp_path / "setup.cfg").write_text(f"[tool:pytest]\nallowed_skips ={allowed}\n", encoding="utf-8")
    run_pytest = (sys.executable, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider")
    done = subprocess.run(run_pytest, cwd=tmp_path, capture_output=True, text=True, check=False)
    unlisted = set(REASONS) - set(listed)
    _, _, told = done.stdout.partition("skips that setup.cfg does not list")
    assert {reason for reason in REASONS if reason in told.partition("short test summary")[0]} == unlisted
    assert done.returncode == (1 if unlisted else 0), done.stdout + done.stderr
