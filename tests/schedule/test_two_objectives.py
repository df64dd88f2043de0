"""A search of num_dense: the error and the share that stays sparse, in the study, the history and the ranking."""

import itertools
import math
from dataclasses import replace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.simulated_search import DiedError, KilledError, SimulatedSearch, sparse_share
from maskpro.errors import MaskproError
from maskpro.schedule.folder import HISTORY_FILE, STUDY_FILE
from maskpro.schedule.history import COMMON_FIDELITY, METRIC, SHARE, History, TrialRecord
from maskpro.schedule.ranking import best_so_far, best_trial, best_trials, completed_by_error, pareto_front
from maskpro.schedule.searcher import SEARCHERS
from maskpro.schedule.state import Plan, plain_metrics
from maskpro.schedule.trial_table import tabulate_front, tabulate_trials

COUNTS = (0, 2, 4, 8)
# A suggestion of the Gaussian process takes a tenth of a second.
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name == "gp" else []) for name in SEARCHERS]


def error(params, samples, budget):
    """Lower with each dense layer, and best at lr 1; fails far above."""
    if params["lr"] > 4:
        return math.nan
    if params["lr"] > 3.5:
        raise DiedError("the worker died: out of memory")
    return (0.5 + 0.2 * math.log10(params["lr"]) ** 2) * (1 - params["num_dense"] / 10) * math.exp(-samples / 900)


PLANNED = tuple(
    Plan(params={"lr": 1.0, "num_dense": count}, source=f"seed point {number}", seed=0)
    for number, count in enumerate(COUNTS, 1)
)
SEARCH = SimulatedSearch(
    distributions={"lr": FloatDistribution(0.05, 5.0, log=True), "num_dense": CategoricalDistribution(COUNTS)},
    curve=error,
    pace=lambda params: 1.0 + params["num_dense"] / 10,
    planned=PLANNED,
    num_trials=14,
    max_samples=300,
    scheduler="none",
    journal=True,
    objectives=(METRIC, SHARE),
)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch):
    """Nobody pulls the plug here, and a flush takes as long as all the rest."""
    monkeypatch.setattr("os.fsync", lambda file: None)


def run_through(search, folder, kills=()):
    folder.mkdir(exist_ok=True)
    for lines in (*kills, math.inf):
        state = search.open(folder, lines=lines)
        try:
            search.run(state)
        except KilledError:
            continue
        state.study.write(folder / STUDY_FILE)
    return state.history


def opened_study(folder):
    """The study on disk, as Optuna's own tools load it."""
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
    return optuna.load_study(study_name="maskpro", storage=storage)


@pytest.mark.parametrize("searcher", EVERY)
def test_optuna_opens_the_journal_with_two_objectives_and_finds_the_same_front(tmp_path, searcher):
    history = run_through(replace(SEARCH, searcher=searcher), tmp_path)
    study = opened_study(tmp_path)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    for trial in study.trials:
        record = history.trials[trial.user_attrs["trial"]]
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [record.last[METRIC], sparse_share(record.params)]
    front = pareto_front(history.searched)
    assert sorted(trial.user_attrs["trial"] for trial in study.best_trials) == sorted(record.number for record in front)
    shares = [record.last[SHARE] for record in front]
    assert shares == sorted(shares, reverse=True)
    assert {sparse_share({"num_dense": count}) for count in COUNTS} == set(shares), "each dense layer lowers the error"


@pytest.mark.parametrize("searcher", EVERY)
def test_a_search_that_was_killed_suggests_what_it_would_have_suggested(tmp_path, searcher):
    search = replace(SEARCH, searcher=searcher)
    whole = run_through(search, tmp_path / "whole")
    killed = run_through(search, tmp_path / "killed", kills=(9, 20, 31, 17))
    assert killed.num_sessions == 5
    for number, record in whole.trials.items():
        assert killed.trials[number].params == record.params
        assert killed.trials[number].reports == record.reports
    assert opened_study(tmp_path / "killed").best_trials[0].values == opened_study(tmp_path / "whole").best_trials[0].values


def test_a_failed_trial_counts_with_its_share_and_one_that_died_counts_in_nothing(tmp_path):
    bad = [Plan(params={"lr": lr, "num_dense": 2}, source="x", seed=0) for lr in (4.5, 3.8)]
    history = run_through(replace(SEARCH, planned=(*PLANNED, *bad), num_trials=6), tmp_path)
    assert [record.status for record in history.trials.values()] == ["completed"] * 4 + ["failed"] * 2
    told = {trial.user_attrs["trial"]: trial for trial in opened_study(tmp_path).trials}
    assert told[5].values == [10.0, 0.8]
    assert (told[6].state, told[6].values) == (TrialState.FAIL, None)
    assert {5, 6}.isdisjoint(record.number for record in pareto_front(history.searched))


def test_trials_of_a_warm_start_are_told_with_their_shares(tmp_path):
    warm = [({"lr": 0.5, "num_dense": count}, 0.4, "other", (), sparse_share({"num_dense": count})) for count in COUNTS]
    search = replace(SEARCH, planned=(), warm_start=warm, num_trials=3)
    state = search.open(tmp_path)
    told = [(trial.params, trial.values) for trial in state.study._study.trials]
    assert told == [(params, [value, share]) for params, value, _, _, share in warm]
    search.run(state)
    again = search.open(tmp_path)
    assert again.history.warm_start == state.history.warm_start
    assert [trial.values for trial in again.study._study.trials[: len(warm)]] == [values for _, values in told]


def test_tpe_looks_for_a_front_and_not_for_the_lowest_error_alone(tmp_path):
    """The lowest error is that of the most dense layers, at which a search for it alone would stay."""
    counts = {}
    for objectives in ((METRIC,), (METRIC, SHARE)):
        search = replace(SEARCH, objectives=objectives, num_trials=30)
        history = run_through(search, tmp_path / str(len(objectives)))
        suggested = [record.params["num_dense"] for record in history.searched[len(PLANNED) :]]
        counts[len(objectives)] = sum(count == max(COUNTS) for count in suggested) / len(suggested)
    assert counts[2] < 0.5 < counts[1]


def record(number, value, share, *, done=True, source="optuna"):
    return TrialRecord(
        number=number,
        params={"num_dense": 0},
        source=source,
        seed=0,
        reports={100: {METRIC: value, SHARE: share, "done": done}},
        samples=100,
        stopped=not done,
        checkpoint_samples=100,
    )


def test_the_promoted_trial_is_the_best_of_those_that_leave_enough_sparse():
    best, sparse, sparser, early = (
        record(1, 0.1, 0.4),
        record(2, 0.2, 0.7),
        record(3, 0.3, 0.9),
        record(4, 0.01, 0.9, done=False),
    )
    records = [best, sparse, sparser, early]
    for least, wanted in ((None, best), (0.4, best), (0.5, sparse), (0.7, sparse), (0.71, sparser)):
        assert best_trials(records, 1, least) == [wanted]
        assert best_trial(records, least) is wanted
    assert completed_by_error(records, 0.5) == [sparse, sparser]
    assert best_so_far(records, 0.5) is early
    assert best_trial(records, 0.95) is None
    with pytest.raises(MaskproError, match=r"^min_sparse_share is 0.95, which no trial has that ran to its full budget"):
        best_trials(records, 1, 0.95)
    with pytest.raises(MaskproError, match="no trial ran to its full budget without an error"):
        best_trials([early], 1, 0.5)


def test_the_front_is_what_nothing_dominates_by_the_definition():
    values = itertools.product((0.1, 0.2, 0.3), (0.5, 0.7, 0.9))
    records = [record(number, *pair) for number, pair in enumerate(values, 1)]
    records += [record(10, 0.2, 0.7), record(11, 0.05, 1.0, done=False)]
    for chosen in itertools.combinations(records, 4):

        def dominated(one, others=chosen):
            return any(
                other.last[METRIC] <= one.last[METRIC]
                and other.last[SHARE] >= one.last[SHARE]
                and (other.last[METRIC] < one.last[METRIC] or other.last[SHARE] > one.last[SHARE])
                for other in others
                if other.status == "completed"
            )

        wanted = [one.number for one in chosen if one.status == "completed" and not dominated(one)]
        assert sorted(one.number for one in pareto_front(chosen)) == wanted


def test_tables_have_the_shares_of_a_search_of_num_dense_alone(tmp_path):
    history = run_through(SEARCH, tmp_path)
    table = tabulate_trials({"lr": None}, history.searched)
    assert table[SHARE].tolist() == [sparse_share(record.params) for record in history.searched if record.last]
    front = tabulate_front(history.searched)
    assert list(front.columns) == ["trial", "num_dense", SHARE, METRIC]
    assert front["trial"].tolist() == [record.number for record in pareto_front(history.searched)]
    assert SHARE not in tabulate_trials({}, run_through(replace(SEARCH, objectives=(METRIC,)), tmp_path / "one").searched)
    assert tabulate_front([]).empty
    assert {SHARE, COMMON_FIDELITY} <= plain_metrics({SHARE: 0.5, COMMON_FIDELITY: math.nan}).keys()


def test_the_least_share_is_known_from_the_history_alone(tmp_path):
    run_through(replace(SEARCH, num_trials=4, min_sparse_share=0.5), tmp_path)
    history = History(tmp_path / HISTORY_FILE)
    assert history.min_sparse_share == 0.5
    assert best_trial(history.searched, history.min_sparse_share).params["num_dense"] == 4
