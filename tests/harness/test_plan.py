from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import plan as plans
from harness.errors import ExitCode, PlanError
from harness.plan import Plan, parse

KEY = "RELU(f32[1x8x8x8])->f32[1x8x8x8]"
SMALLEST = f'plan_format = 1\n[operations]\nkeys = ["{KEY}"]\n'


def problems(text: str, directory: Path | None = None) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        parse(text, directory=directory)
    assert caught.value.exit_code == ExitCode.BAD_REQUEST
    assert "\n" not in str(caught.value)
    return dict(caught.value.problems)


def test_a_plan_of_one_key_has_defaults_for_the_rest() -> None:
    plan = parse(SMALLEST)
    assert plan.operations.keys == (KEY,)
    assert plan.measure == plans.Measure()
    assert plan.runtime.threads == 1


def test_the_shipped_plan_is_sound_and_says_what_it_measures() -> None:
    plan, text = plans.shipped()
    assert plan.operations.spaces
    assert plan.operations.elp_nas
    assert tomllib.loads(text)["plan_format"] == plans.PLAN_FORMAT


def test_all_mistakes_are_told_at_once_each_with_its_place() -> None:
    found = problems("""
        plan_format = 1
        nam = "x"
        [operations]
        spaces = ["enas-micro", "enas-makro"]
        precision = ["float31"]
        keys = ["RELU(f32[1x8x8x8])", 7]
        [runtime]
        delegate = "gpu"
        threads = 0
        [measure]
        round_max = 5
        seed = 1.5
        burst_us = "long"
        [device]
        core = true
        [unheard_of]
        """)
    assert set(found) == {
        "nam", "operations.spaces.1", "operations.precision.0", "operations.keys.0", "operations.keys.1", "runtime.delegate",
        "runtime.threads", "measure.round_max", "measure.seed", "measure.burst_us", "device.core", "unheard_of",
    }  # fmt: skip
    assert "the nearest is name" in found["nam"]
    assert "the nearest is rounds_max" in found["measure.round_max"]
    assert "enas-micro" in found["operations.spaces.1"]
    assert "is not an operation key" in found["operations.keys.0"]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("measure", 'rounds_min = "9"'),
        ("measure", "rounds_min = true"),
        ("measure", "rounds_min = 9.5"),
        ("measure", "burst_us = nan"),
        ("measure", "budget_s = inf"),
        ("measure", "budget_s = -1"),
        ("measure", "seed = 4294967296"),
        ("runtime", "threads = [1]"),
        ("runtime", 'name = "tflite"'),
        ("device", "core = -1"),
        ("device", 'kind = "phone"'),
        ("networks", 'models = "one.tflite"'),
        ("networks", "models = [3]"),
        ("networks", 'models = ["a\\u0000b"]'),
    ],
)
def test_a_wrong_value_is_told_with_its_place(section: str, line: str) -> None:
    (place,) = problems(f"{SMALLEST}[{section}]\n{line}\n")
    assert place.startswith(f"{section}.{line.split(maxsplit=1)[0]}")


def test_more_least_rounds_than_most_rounds_are_refused() -> None:
    assert "below rounds_min" in problems(f"{SMALLEST}[measure]\nrounds_min = 9\nrounds_max = 8\n")["measure"]


def test_a_plan_that_measures_nothing_is_refused() -> None:
    assert "names no model" in problems("plan_format = 1\n")[""]


@pytest.mark.parametrize("version", ["2", '"1"', "[1]", "0"])
def test_a_plan_of_another_format_is_told_apart_from_typos(version: str) -> None:
    found = problems(f"plan_format = {version}\nsettings_of_the_future = 3\n")
    assert list(found) == ["plan_format"]


def test_a_plan_without_a_format_says_so() -> None:
    assert "plan_format" in problems("[operations]\nkeys = []\n")


NO_TOML = ["plan_format = ", "a = 1\na = 2", "[", "x = " + "9" * 5000, "a = " + "[" * 3000, "\0", "t = 2020-02-31"]


@pytest.mark.parametrize("text", NO_TOML)
def test_text_that_is_no_toml_is_one_problem(text: str) -> None:
    assert list(problems(text)) == [""]


def test_relative_files_are_looked_for_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "a.tflite").write_bytes(b"x")
    (tmp_path / "p.toml").write_text('plan_format = 1\n[networks]\nmodels = ["nets/../nets/a.tflite"]\n')
    plan, text = plans.read(tmp_path / "p.toml")
    assert plan.networks.models == ((tmp_path / "nets" / "a.tflite").resolve(),)
    assert text == (tmp_path / "p.toml").read_text()


def test_every_file_that_is_missing_is_told(tmp_path: Path) -> None:
    text = f'plan_format = 1\n[operations]\nmodels = ["a", ".", "{"n" * 300}"]\n[networks]\nmodels = ["b"]\n'
    found = problems(text, tmp_path)
    assert set(found) == {"operations.models.0", "operations.models.1", "operations.models.2", "networks.models.0"}
    assert "does not exist" in found["networks.models.0"]
    assert "is not a file" in found["operations.models.1"]
    assert parse(text, directory=tmp_path, check_files=False).networks.models == ((tmp_path / "b").resolve(),)


def test_the_home_of_nobody_is_a_problem_of_its_line() -> None:
    assert list(problems('plan_format = 1\n[networks]\nmodels = ["~no-such-user-at-all/a"]\n')) == ["networks.models.0"]


def test_a_plan_file_that_cannot_be_read_is_a_plan_error(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"plan_format = 1 # \xe9\n")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(PlanError, match="cannot be read"):
            plans.read(path)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_files_of_any_name_survive_the_way_through_toml(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    directory = tmp_path_factory.mktemp("models")
    paths = tuple(directory / name for name in names)
    for path in paths:
        path.write_bytes(b"")
    plan, text = plans.for_models(paths[:1], networks=paths[1:])
    assert plan.operations.models == paths[:1]
    assert plan.networks.models == paths[1:]
    assert parse(text) == plan


ODD_NAMES = ["q\"u\\o te's", "tab\tnew\nline", "ünï-猫-\U0001f600", "\U000e0001\x7f\x1b", "#=[]", "a\\u0041"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_written_so_that_they_are_read_back(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert plans.for_models((tmp_path / name,))[0].operations.models == (tmp_path / name,)


def test_a_name_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tflite"))
    path.write_bytes(b"")
    with pytest.raises(PlanError, match="not UTF-8"):
        plans.for_models((path,))


def test_a_plan_for_models_takes_the_sections_of_its_template(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    template = parse(
        f'{SMALLEST}[runtime]\ndelegate = "none"\nthreads = 2\n[measure]\nburst_us = 1e-05\nbudget_s = 1e16\nseed = 9\n'
        "[device]\ncore = 0\n"
    )
    made, _ = plans.for_models((tmp_path / "a",), template=template, name="again")
    assert (made.runtime, made.measure, made.device, made.name) == (template.runtime, template.measure, template.device, "again")
    assert made.operations.models == (tmp_path / "a",)


WORDS = [
    *Plan.model_fields, *plans.Operations.model_fields, *plans.Measure.model_fields, "plan_format = 1", "=", "[operations]",
    "[measure]", "[[networks]]", "[", "]", '"float32"', '"enas-micro"', f'"{KEY}"', "1", "-3", "true", "1e999", "nan", "{", "}",
    ".", ",", "\n", "\n", " ", "#", "'", '"""', "\\u0000", "1979-05-27T07:32:00Z", "0x1F",
]  # fmt: skip


@given(text=st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = parse(text)
    except PlanError as error:
        assert error.problems
        assert "\n" not in str(error)
    else:
        assert isinstance(plan, Plan)


LEAVES = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["hot", KEY, "xnnpack", "models"]),
)
SETTINGS = st.sampled_from([*plans.Operations.model_fields, *plans.Measure.model_fields])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SETTINGS, inner, max_size=4), max_leaves=6
)


@given(content=st.dictionaries(st.sampled_from([*Plan.model_fields, "extra"]), VALUES, max_size=5))
def test_any_toml_of_a_plans_shape_is_a_plan_or_a_plan_error(content: dict[str, object]) -> None:
    try:
        parse("\n".join(f"{name} = {as_toml(value)}" for name, value in {"plan_format": 1, **content}.items()))
    except PlanError as error:
        assert error.problems


def as_toml(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{name} = {as_toml(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case _:
            return repr(value)
