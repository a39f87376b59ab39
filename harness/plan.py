"""The plan: what is measured and how, as a TOML file that is kept verbatim in the run directory.

Everything that decides a number stands here; commands only choose where results go and which part runs. All mistakes
of a plan are told at once, each with its place (:class:`~harness.errors.PlanError`).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.errors import PlanError

PLAN_FORMAT = 1
Precision = Literal["float32", "float16", "int8"]
Delegate = Literal["xnnpack", "none"]


def _file_name(text: str | Path) -> str | Path:
    if "\0" in str(text):
        raise ValueError("a file name cannot hold the character NUL")
    return text


def _known_space(name: str) -> str:
    from op_models.spaces.registry import SPACES

    if name not in SPACES:
        raise ValueError(f"there is no space {name!r}; there are {', '.join(sorted(SPACES))}")
    return name


def _known_key(key: str) -> str:
    from op_models.errors import SpecError
    from op_models.spec import OpSpec

    try:
        OpSpec.from_key(key)
    except SpecError as error:
        raise ValueError(str(error)) from error
    return key


def _number(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise ValueError("Input should be a number")
    return value


ModelPath = Annotated[Path, BeforeValidator(_file_name)]
# pydantic would take true for 1 and "2" for 2; in a plan both are mistakes.
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]


class _Section(BaseModel):
    # A plan is typed by hand: closed and frozen, but TOML's arrays become tuples and 1 may stand for 1.0.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Operations(_Section):
    """Where the operations to measure come from."""

    models: tuple[ModelPath, ...] = ()
    """``.tflite`` files whose operations are lifted with their own weights."""
    spaces: tuple[Annotated[str, AfterValidator(_known_space)], ...] = ()
    """Search spaces, all of whose operations are measured."""
    precision: tuple[Precision, ...] = ("float32",)
    """Precisions of the spaces' operations."""
    keys: tuple[Annotated[str, AfterValidator(_known_key)], ...] = ()
    """Single operations by key."""
    elp_nas: bool = False
    """Also the twelve N-repeated operations of ELP-NAS with that work's own statistic, for comparison."""
    contexts: tuple[Literal["hot", "cold", "far"], ...] = ("hot", "cold", "far")


class Networks(_Section):
    """Whole networks to measure, for calibration and validation."""

    models: tuple[ModelPath, ...] = ()


class Device(_Section):
    """The device that measures."""

    kind: Literal["local"] = "local"
    core: Annotated[Whole, Field(ge=0)] | None = None
    """Core to pin to; the last usable one where none is named."""


class Runtime(_Section):
    """The software that runs the models."""

    name: Literal["litert"] = "litert"
    delegate: Delegate = "xnnpack"
    threads: Annotated[Whole, Field(ge=1, le=64)] = 1


class Measure(_Section):
    """How much is measured and when it is enough."""

    rounds_min: Annotated[Whole, Field(ge=3, le=1000)] = 10
    rounds_max: Annotated[Whole, Field(ge=3, le=10_000)] = 24
    burst_us: Annotated[Real, Field(gt=0, le=1e7)] = 3000.0
    """Time that one visit to a model aims at; at least three invocations are made whatever they take."""
    target_half_width_frac: Annotated[Real, Field(gt=0, lt=1)] = 0.02
    """An operation is done when the half-width of its 95 % interval is below this share of it."""
    budget_s: Annotated[Real, Field(gt=0)] | None = None
    block_models: Annotated[Whole, Field(ge=4, le=5000)] = 700
    """Most op models loaded at once."""
    block_bytes: Annotated[Whole, Field(ge=2**20)] = 6 * 2**30
    """Most memory that the op models of a block may take together."""
    job_timeout_s: Annotated[Real, Field(gt=0)] = 120.0
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Measure:
        if self.rounds_max < self.rounds_min:
            raise ValueError(f"rounds_max {self.rounds_max} is below rounds_min {self.rounds_min}")
        return self


class Plan(_Section):
    """A whole plan."""

    plan_format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "plan"
    operations: Operations = Operations()
    networks: Networks = Networks()
    device: Device = Device()
    runtime: Runtime = Runtime()
    measure: Measure = Measure()

    @model_validator(mode="after")
    def _something(self) -> Plan:
        asked = self.operations
        if not (asked.models or asked.spaces or asked.keys or asked.elp_nas or self.networks.models):
            raise ValueError("it names no model, space, key or network to measure")
        return self


def parse(text: str, source: str = "the plan", *, directory: Path | None = None, check_files: bool = True) -> Plan:
    """The plan that a TOML text holds; relative paths are taken from ``directory``.

    Raises :class:`PlanError` with every problem at once.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: Python refuses a number of 5000 digits
        raise PlanError(problems=[("", f"not valid TOML ({error})")], source=source) from error
    if "plan_format" in content and content["plan_format"] != PLAN_FORMAT:
        found = content["plan_format"]
        raise PlanError(problems=[("plan_format", f"this version reads format {PLAN_FORMAT}, not {found!r}")], source=source)
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        problems = [(".".join(map(str, item["loc"])), _reason(item["type"], item["loc"], item["msg"])) for item in error.errors()]
        raise PlanError(problems=problems, source=source) from error
    plan = _absolute(plan, directory or Path.cwd(), source)
    if check_files:
        require_files(plan, source)
    return plan


def require_files(plan: Plan, source: str) -> None:
    """Raises :class:`PlanError` with every model file of a plan that is not there."""
    looked = [
        (f"{section}.models.{i}", _why_no_file(path))
        for section, paths in (("operations", plan.operations.models), ("networks", plan.networks.models))
        for i, path in enumerate(paths)
    ]
    problems = [(place, reason) for place, reason in looked if reason is not None]
    if problems:
        raise PlanError(problems=problems, source=source)


def _why_no_file(path: Path) -> str | None:
    try:
        if path.is_file():
            return None
        return f"{path} is not a file" if path.exists() else f"{path} does not exist"
    except OSError as error:  # a name that is too long, a directory that may not be entered
        return f"{path} cannot be found ({error.strerror})"


def _reason(kind: str, place: Sequence[int | str], message: str) -> str:
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    section: Any = Plan
    for name in place[:-1]:
        section = section.model_fields[name].annotation
    near = difflib.get_close_matches(str(place[-1]), section.model_fields, 1)
    return "there is no such setting" + (f"; the nearest is {near[0]}" if near else "")


def _absolute(plan: Plan, directory: Path, source: str) -> Plan:
    problems: list[tuple[str, str]] = []

    def resolved(section: str, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        found = []
        for i, path in enumerate(paths):
            try:
                found.append((directory / path.expanduser()).resolve())
            except (OSError, RuntimeError) as error:  # a home of nobody, links in a circle
                problems.append((f"{section}.models.{i}", f"{path} leads nowhere ({error})"))
        return tuple(found)

    operations, networks = resolved("operations", plan.operations.models), resolved("networks", plan.networks.models)
    if problems:
        raise PlanError(problems=problems, source=source)
    return plan.model_copy(
        update={
            "operations": plan.operations.model_copy(update={"models": operations}),
            "networks": plan.networks.model_copy(update={"models": networks}),
        }
    )


def read(path: Path) -> tuple[Plan, str]:
    """The plan in a file, and its text. Raises :class:`PlanError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PlanError(problems=[("", f"cannot be read ({reason})")], source=str(path)) from error
    return parse(text, str(path), directory=path.resolve().parent), text


def shipped(name: str = "default") -> tuple[Plan, str]:
    """A plan that comes with the package, and its text."""
    text = resources.files("harness").joinpath("plans", f"{name}.toml").read_text(encoding="utf-8")
    return parse(text, f"the shipped plan {name!r}"), text


def for_models(
    models: tuple[Path, ...], *, networks: tuple[Path, ...] = (), name: str = "models", template: Plan | None = None
) -> tuple[Plan, str]:
    """A plan that measures every operation of the given files (and the given whole networks), and its text.

    Runtime, device and measure sections are those of ``template``, else the defaults. Raises :class:`PlanError` where a file
    is missing or its name cannot be written in TOML.
    """
    for place, path in enumerate((*models, *networks)):
        if not _is_text(str(path.resolve())):
            raise PlanError(problems=[(f"file {place + 1}", f"its name {str(path)!r} is not UTF-8 text")], source="the request")
    lines = [f"plan_format = {PLAN_FORMAT}", f'name = "{name}"', "", "[operations]", f"models = {_toml_paths(models)}"]
    if networks:
        lines += ["", "[networks]", f"models = {_toml_paths(networks)}"]
    if template is not None:
        for section in ("device", "runtime", "measure"):
            values = getattr(template, section).model_dump(mode="json", exclude_none=True)
            lines += ["", f"[{section}]"] + [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    text = "\n".join(lines) + "\n"
    return parse(text, "the request"), text


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _toml_paths(paths: tuple[Path, ...]) -> str:
    return "[" + ", ".join(_toml_value(str(path.resolve())) for path in paths) + "]"


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
    return f'"{escaped}"'
