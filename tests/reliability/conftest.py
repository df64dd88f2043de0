"""Faults of every kind: in a short form with all other tests, in the long form by `pytest tests/reliability --full`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pandas as pd


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tests of reliability in their long form: hours")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: only with --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full", default=False):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only with --full"))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--full", default=False))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The trials of a short search that nothing has disturbed."""
    from searches import SPACE, Driver, check_runs, compared, new_search  # with torch, which not every process needs

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "space.py").write_text(SPACE)
    driver = Driver(new_search(folder), folder / "output.txt")
    assert driver.complete() == 0, driver.log.read_text()
    driver.seconds_left_over()
    check_runs(folder / "search")
    assert '"promoted": true' in (folder / "search" / "history.jsonl").read_text(), "a promotion is among the moments"
    return compared(folder / "search")
