"""A history that is damaged in any line or byte: it is refused, or the search goes on from what it says."""

from __future__ import annotations

from contextlib import suppress

import pytest

from benchmarks.simulated_search import SimulatedSearch
from maskpro.errors import MaskproError
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import History
from maskpro.schedule.state import Plan
from maskpro.schedule.trial_table import tabulate_trials

POINTS = [{"lr": lr, "logits": 4.0, "batch_size": 32} for lr in (1.0, 5.0)]
SEARCH = SimulatedSearch(
    num_trials=9,
    planned=[Plan(params=point, source=f"seed point {number}", seed=0) for number, point in enumerate(POINTS, 1)],
    searcher="random",
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    SEARCH.run(SEARCH.open(folder))
    return (folder / HISTORY_FILE).read_bytes().splitlines(keepends=True)


def test_a_line_is_gone_or_twice_or_in_another_place(lines, full, tmp_path):
    path = tmp_path / HISTORY_FILE
    refused = 0
    for number, line in enumerate(lines):
        if not full and number % 9:
            continue
        before, after = lines[:number], lines[number + 1 :]
        for changed in ([*before, *after], [*before, line, line, *after], [*before, *after[:1], line, *after[1:]]):
            path.write_bytes(b"".join(changed))
            try:
                SEARCH.run(SEARCH.open(tmp_path))
            except MaskproError:
                refused += 1
            else:
                assert len(History(path).searched) >= 9 - 1
    assert refused, "a line without its trial"


def test_a_byte_is_another_or_gone(lines, full, tmp_path):
    whole = b"".join(lines)
    path = tmp_path / HISTORY_FILE
    for place in range(0, len(whole), 1 if full else 199):
        for byte in (b"", b"\0", b"9", b'"', b"\n", bytes([whole[place] ^ 1])):
            path.write_bytes(whole[:place] + byte + whole[place + 1 :])
            with suppress(MaskproError):
                tabulate_trials({"lr": None}, History(path).searched)
