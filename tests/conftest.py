"""Rules of the suite: skips need a listed reason, slow examples are no finding, the user's cache is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy: an example that takes long is no finding. In CI the same examples are drawn every time.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("allowed_skips", "reasons for which a test may be skipped or expected to fail", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist, reports come together in the process that started the workers
        config.pluginmanager.register(SkipRule(config.getini("allowed_skips")))


class SkipRule:
    """Fails a session in which a test was skipped, or failed as expected, for a reason that setup.cfg does not list."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = frozenset(allowed)
        self.unlisted: dict[str, str] = {}

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and (reason := skip_reason(report)) not in self.allowed:
            self.unlisted[report.nodeid] = reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._judge(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skips that setup.cfg does not list", red=True)
            for test, reason in self.unlisted.items():
                terminalreporter.line(f"{test}: {reason}")


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The text given where the skip, or the expected failure, is written."""
    if isinstance(expected := getattr(report, "wasxfail", None), str):
        return expected.removeprefix("reason: ")
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Artefacts of tests stay out of the user's cache, unless a cache for them is named."""
    with pytest.MonkeyPatch.context() as patch:
        if "ELP_LUT_CACHE" not in os.environ:
            patch.setenv("ELP_LUT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
