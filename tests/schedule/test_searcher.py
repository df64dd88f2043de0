"""What is suggested, and the Optuna study that it comes from."""

import itertools
import json
import math
import os
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.pruners import PercentilePruner
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.simulated_search import DISTRIBUTIONS, DiedError, KilledError, SimulatedSearch, learning_curve
from maskpro.errors import MaskproError
from maskpro.schedule.folder import HISTORY_FILE, STUDY_FILE
from maskpro.schedule.history import History
from maskpro.schedule.searcher import SEARCHERS, SearchStudy, check_searcher
from maskpro.schedule.state import Plan, SearchState

# Good, failing at 200 samples, dying after 200 samples, bad.
SEED_POINTS = (
    {"lr": 1.0, "logits": 4.0, "batch_size": 32},
    {"lr": 4.5, "logits": 3.0, "batch_size": 16},
    {"lr": 2.0, "logits": 9.9, "batch_size": 64},
    {"lr": 0.05, "logits": 9.0, "batch_size": 16},
)
PLANNED = tuple(Plan(params=point, source=f"seed point {number}", seed=0) for number, point in enumerate(SEED_POINTS, 1))
SEARCH = SimulatedSearch(planned=PLANNED, num_trials=14, journal=True)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch):
    """Nobody pulls the plug here, and a flush takes as long as all the rest."""
    monkeypatch.setattr("os.fsync", lambda file: None)


def load_journal(folder):
    """The study on disk, as Optuna's own tools would load it."""
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
    return {trial.user_attrs["trial"]: trial for trial in optuna.load_study(storage=storage, study_name="maskpro").trials}


def told(trial):
    """Everything of a trial but its times and the sampler's notes."""
    return trial.state, trial.params, trial.values, trial.intermediate_values, trial.user_attrs


def has_stopped(record):
    """A trial that ended, or stopped, whatever came later."""
    return record.status != "unfinished" or record.stopped_at is not None


def as_it_stopped(record):
    """A trial that goes on is still told as it stopped."""
    if record.status != "unfinished":
        return record
    reports = {samples: report for samples, report in record.reports.items() if samples <= record.stopped_at}
    end = {"samples": record.stopped_at, "checkpoint_samples": record.stopped_at}
    return replace(record, reports=reports, stopped=True, **end)


def check_journal(folder, history):
    journal = load_journal(folder)
    assert journal.keys() == {record.number for record in history.searched if has_stopped(record)}
    for number, trial in journal.items():
        record = as_it_stopped(history.trials[number])
        dead = bool(record.error)
        assert trial.state == (TrialState.FAIL if dead else TrialState.COMPLETE)
        assert trial.params == record.params
        assert trial.values == (None if dead else [record.last["val_error"]])
        assert trial.intermediate_values == {samples: report["val_error"] for samples, report in record.reports.items()}
        assert trial.user_attrs == {
            "trial": number,
            "source": record.source,
            "status": record.status,
            "num_samples_seen": record.samples,
            "fidelity": record.last.get("fidelity"),
        } | ({} if record.seed_point is None else {"seed_point": record.seed_point})
    return journal


def test_the_journal_holds_what_the_trials_came_to(tmp_path):
    state = SEARCH.open(tmp_path)
    SEARCH.run(state)
    state.study.write(tmp_path / STUDY_FILE)  # as every session does at its end
    journal = check_journal(tmp_path, state.history)
    statuses = [journal[number].user_attrs["status"] for number in (1, 2, 3)]
    assert statuses == ["completed", "failed", "failed"]
    assert [journal[number].state.name for number in (1, 2, 3)] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert journal[2].value == 10.0
    assert "stopped" in {trial.user_attrs["status"] for trial in journal.values()}
    assert all(trial.params.keys() == DISTRIBUTIONS.keys() for trial in journal.values()), "flat names, nothing beside them"


def test_optunas_own_tools_open_the_journal(tmp_path):
    """optuna-dashboard as `optuna-dashboard FILE` opens it, by its web interface, and optuna.visualization."""
    state = SEARCH.open(tmp_path)
    SEARCH.run(state)
    state.study.write(tmp_path / STUDY_FILE)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STUDY_FILE)))
    answers = []
    dashboard = optuna_dashboard.wsgi(storage)
    for path in ("/api/studies", "/api/studies/0?after=0"):
        request = {}
        setup_testing_defaults(request)
        request["PATH_INFO"], _, request["QUERY_STRING"] = path.partition("?")
        body = b"".join(dashboard(request, lambda status, *_: answers.append(status)))
        answers.append(json.loads(body))
    assert [answer for answer in answers if isinstance(answer, str)] == ["200 OK", "200 OK"]
    assert [study["study_name"] for study in answers[1]["study_summaries"]] == ["maskpro"]
    study = optuna.load_study(storage=storage, study_name="maskpro")
    assert {trial["number"] for trial in answers[3]["trials"]} == {trial.number for trial in study.trials}
    draw = optuna.visualization
    for figure in (draw.plot_optimization_history(study), draw.plot_slice(study), draw.plot_parallel_coordinate(study)):
        assert figure.data
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert len(draw.plot_intermediate_values(study).data) == len(complete)


@pytest.mark.parametrize("slots", [1, 3])
def test_the_journal_holds_ended_trials_alone_after_a_kill_and_after_going_on(tmp_path, slots):
    search = replace(SEARCH, slots=slots)
    for lines in (0, 1, 2, 7, 25, 12, 30):
        with pytest.raises(KilledError):
            search.run(search.open(tmp_path, lines=lines, torn=True))
        if (tmp_path / STUDY_FILE).exists():
            ended = load_journal(tmp_path)
            assert all(trial.state.is_finished() for trial in ended.values())
            # The kill may have come between the last line of the history and the journal.
            history = History(tmp_path / HISTORY_FILE)
            told = {number for number, record in history.trials.items() if has_stopped(record)}
            assert ended.keys() <= told
            assert len(told) - len(ended) in (0, 1)
    state = search.open(tmp_path)
    check_journal(tmp_path, state.history)
    search.run(state)
    state.study.write(tmp_path / STUDY_FILE)
    assert len(check_journal(tmp_path, state.history)) == 14


def test_a_kill_while_the_journal_is_written_does_not_block_the_next_session(tmp_path, monkeypatch):
    """Optuna's lock is a symbolic link beside the file; half a line at its end is what a kill leaves."""
    with pytest.raises(KilledError):
        SEARCH.run(SEARCH.open(tmp_path, lines=40))
    with (tmp_path / STUDY_FILE).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    lock = tmp_path / f"{STUDY_FILE}.lock"
    lock.symlink_to(tmp_path / STUDY_FILE)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("the lock of a killed session is waited for"))
    state = SEARCH.open(tmp_path)
    assert not os.path.lexists(lock)
    SEARCH.run(state)
    state.study.write(tmp_path / STUDY_FILE)
    check_journal(tmp_path, state.history)
    assert sorted(path.name for path in tmp_path.iterdir()) == [HISTORY_FILE, STUDY_FILE]


class Compared:
    """A TrialSource that compares its study with one made of the history, whenever a trial begins or ends."""

    def __init__(self, state, search):
        self.history, self._state, self._search = state.history, state, search
        self.num_compared = 0

    def next_trial(self):
        record = self._state.next_trial()
        self._compare()
        return record

    def budget(self, record):
        return self._state.budget(record)

    def report(self, number, metrics):
        return self._state.report(number, metrics)

    @property
    def is_over(self):
        return self._state.is_over

    @property
    def stopped_may_go_on(self):
        return self._state.stopped_may_go_on

    def finish(self, number):
        self._state.finish(number)
        self._compare()

    def _compare(self):
        replayed = self._search.study()
        replayed.replay(self.history)
        ours, theirs = (study._study.get_trials(deepcopy=False) for study in (self._state.study, replayed))
        assert len(ours) == len(theirs)
        for trial, other in zip(ours, theirs, strict=True):
            if trial.state == TrialState.RUNNING and other.state.is_finished():
                # It has failed, and Tune is still to say that it has ended.
                assert other.user_attrs["status"] == "failed"
                assert (trial.params, trial.intermediate_values) == (other.params, other.intermediate_values)
            else:
                assert told(trial) == told(other)
        self.num_compared += 1


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_the_study_is_at_all_times_what_the_history_makes_of_it(tmp_path, scheduler):
    search = replace(SEARCH, slots=3, scheduler=scheduler, journal=False, warm_start=[(SEED_POINTS[0], 0.4, "other")])
    source = Compared(search.open(tmp_path), search)
    search.run(source)
    assert source.num_compared >= 2 * 14


def _dies_once_it_is_promoted(params, samples, budget):
    if budget == 900 and samples > 100:
        raise DiedError("out of memory")
    return params["lr"]


def test_a_trial_that_dies_after_its_promotion_no_longer_counts(tmp_path):
    search = replace(SEARCH, planned=(), restarts=True, curve=_dies_once_it_is_promoted, searcher="random", journal=False)
    source = Compared(search.open(tmp_path), search)
    search.run(source)
    dead = [record for record in source.history.searched if record.error and record.stopped_at]
    assert dead
    told_trials = {trial.user_attrs["trial"]: trial for trial in source._state.study._study.get_trials(deepcopy=False)}
    assert all(told_trials[record.number].state == TrialState.FAIL for record in dead)


def suggestions(folder, **settings):
    folder.mkdir()
    search = replace(SEARCH, journal=False, **settings)
    state = search.open(folder)
    search.run(state)
    return [record.params for record in state.history.trials.values()]


def _my_searcher(seed):
    """As a space file may have it."""
    return TPESampler(seed=seed, n_startup_trials=3, n_ei_candidates=5)


ALL_SEARCHERS = (*SEARCHERS, _my_searcher)
ALL_SCHEDULERS = ("asha", "median", PercentilePruner(50.0, n_startup_trials=2))


@pytest.mark.parametrize(
    "searcher", [pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name for name in ALL_SEARCHERS]
)
def test_the_same_seed_suggests_the_same_and_another_seed_something_else(tmp_path, searcher):
    first, second = (suggestions(tmp_path / name, searcher=searcher) for name in ("first", "second"))
    other = suggestions(tmp_path / "other", searcher=searcher, seed=1)
    assert first == second
    assert first[:4] == other[:4] == list(SEED_POINTS)
    assert not any(ours == theirs for ours, theirs in zip(first[4:], other[4:], strict=True))
    assert len({json.dumps(params) for params in first}) == len(first), "nothing is suggested twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("searcher", "scheduler"),
    [*((searcher, "asha") for searcher in ALL_SEARCHERS), *(("random", scheduler) for scheduler in ALL_SCHEDULERS[1:])],
)
def test_a_search_that_is_killed_suggests_and_stops_what_it_would_have_anyway(tmp_path, searcher, scheduler):
    search = replace(SEARCH, journal=False, searcher=searcher, scheduler=scheduler)
    (tmp_path / "whole").mkdir()
    whole = search.open(tmp_path / "whole")
    search.run(whole)
    (tmp_path / "killed").mkdir()
    for lines in (30, 20, 15):
        with pytest.raises(KilledError):
            search.run(search.open(tmp_path / "killed", lines=lines, torn=True))
    killed = search.open(tmp_path / "killed")
    search.run(killed)
    for name in ("params", "reports", "stopped", "source"):
        expected = [getattr(record, name) for record in whole.history.trials.values()]
        assert [getattr(record, name) for record in killed.history.trials.values()] == expected, name


def test_quasi_random_suggestions_fill_the_space_more_evenly_than_random_ones(tmp_path):
    """Of 16 numbers of a scrambled Sobol sequence one lies in each sixteenth of the range."""
    settings = {"planned": (), "scheduler": "none", "num_trials": 16}
    logits = [params["logits"] for params in suggestions(tmp_path / "qmc", searcher="qmc", **settings)]
    low, high = DISTRIBUTIONS["logits"].low, DISTRIBUTIONS["logits"].high
    assert sorted(int(16 * (value - low) / (high - low)) for value in logits) == list(range(16))


def test_random_suggestions_do_not_depend_on_what_was_found_and_those_of_tpe_do(tmp_path):
    def upside_down(params, samples, budget):
        return 2 - learning_curve(params, samples)

    for searcher, is_same in (("random", True), ("optuna", False)):
        settings = {"searcher": searcher, "scheduler": "none"}
        plain = suggestions(tmp_path / searcher, **settings)
        other = suggestions(tmp_path / f"{searcher}_other", curve=upside_down, **settings)
        assert (plain == other) == is_same


@pytest.mark.parametrize(
    ("planned", "num_at_random"), [((), 5), ((PLANNED[0],), 0), ((PLANNED[0], PLANNED[1], PLANNED[3]), 0)]
)
def test_tpe_begins_after_the_seed_points_or_else_after_five_trials_at_random(tmp_path, planned, num_at_random):
    def upside_down(params, samples, budget):
        return 2 - learning_curve(params, samples)

    settings = {"planned": planned, "scheduler": "none", "num_trials": len(planned) + num_at_random + 1}
    random = suggestions(tmp_path / "random", searcher="random", **settings)
    plain = suggestions(tmp_path / "plain", **settings)
    other = suggestions(tmp_path / "other", curve=upside_down, **settings)
    assert plain[:-1] == other[:-1] == random[:-1]
    assert plain[-1] != random[-1]


def test_every_suggestion_lies_in_the_space(tmp_path):
    for params in suggestions(tmp_path / "search", num_trials=40):
        assert params.keys() == DISTRIBUTIONS.keys()
        for name, distribution in DISTRIBUTIONS.items():
            assert distribution._contains(distribution.to_internal_repr(params[name]))


def loss_after_one_report(params):
    return learning_curve(params, 100)


WARM = tuple(
    (point, loss_after_one_report(point), "other")
    for point in (
        {"lr": lr, "logits": logits, "batch_size": batch_size}
        for lr, logits, batch_size in itertools.product((0.05, 0.3, 1.0, 3.0), (2.0, 4.0, 8.0), (16, 128))
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_warm_start_trials_are_in_the_study_before_the_first_trial(tmp_path, searcher):
    search = replace(SEARCH, searcher=searcher, planned=(), warm_start=WARM)
    state = search.open(tmp_path)
    told_before = state.study._study.trials
    assert [(trial.params, trial.value, trial.user_attrs) for trial in told_before] == [
        (params, value, {"source": source}) for params, value, source in WARM
    ]
    assert not state.history.trials
    search.run(state)
    again = search.open(tmp_path)
    assert again.history.warm_start == state.history.warm_start, "told once, by the first session"
    assert len(again.study._study.trials) == len(WARM) + 14
    assert len(state.history.searched) == 14


def test_warm_start_changes_what_tpe_suggests_from_the_first_trial_on(tmp_path):
    losses = {}
    for name, warm_start in (("cold", ()), ("warm", WARM)):
        found = [
            suggestions(tmp_path / f"{name}{seed}", planned=(), warm_start=warm_start, num_trials=6, seed=seed)
            for seed in range(3)
        ]
        losses[name] = [loss_after_one_report(params) for run in found for params in run]
    assert not any(ours == theirs for ours, theirs in zip(losses["cold"], losses["warm"], strict=True))
    assert sum(losses["warm"]) < sum(losses["cold"]), "it starts where the told ones were good"


RUNGS = (100, 300, 900)
FAILED = 10.0


def replayed(told, *, searcher="tpe", rungs=RUNGS, warm=(), num_seed_points=1, pruner=None):
    """The study of trials with these (lr, {samples: value}); one with a value of FAILED failed there."""
    history = History(None)
    for lr, values in warm:
        history.add_warm_start({"lr": lr}, list(values.values())[-1], "other", list(values.items()))
    for lr, values in told:
        number = history.start({"lr": lr}, source="optuna", seed=0).number
        for samples, value in values.items():
            failure = {"failure": "not finite"} if value == FAILED else {}
            done = bool(failure) or samples == RUNGS[-1]
            report = {"num_samples_seen": samples, "val_error": value, "done": done, **failure}
            history.report(number, report, stopped=samples == list(values)[-1] and not done)
            history.checkpoint(number, "somewhere", samples)
    study = SearchStudy(
        searcher,
        distributions={"lr": DISTRIBUTIONS["lr"]},
        pruner=pruner or optuna.pruners.NopPruner(),
        seed=0,
        num_seed_points=num_seed_points,
        rungs=rungs,
    )
    study.replay(history)
    return study


def suggested(told, **settings):
    """What is suggested after these trials."""
    study = replayed(told, **settings)
    before = [told_trial(trial) for trial in study._study.trials]
    found = study.suggest(99, place=99)["lr"]
    assert [told_trial(trial) for trial in study._study.trials[: len(before)]] == before, "the study itself is unchanged"
    return found


def told_trial(trial):
    return trial.state, trial.value, trial.intermediate_values


FIRST_RUNG = [(0.05 * 100 ** (number / 20), {100: 0.5 + 0.01 * abs(number - 10)}) for number in range(20)]
FURTHER = {300: 0.2, 900: 0.1}


def with_reports(told, reports, numbers):
    return [(lr, values | (reports if number in numbers else {})) for number, (lr, values) in enumerate(told)]


@pytest.mark.parametrize("numbers", [(0,), (0, 19), (1, 2, 3)])
def test_suggestions_come_from_values_at_the_same_rung_however_far_few_trials_went(numbers):
    further = with_reports(FIRST_RUNG, FURTHER, numbers)
    assert suggested(further) == suggested(FIRST_RUNG)
    assert suggested(further, rungs=()) != suggested(FIRST_RUNG), "last values are not comparable"


def test_suggestions_come_from_the_highest_rung_with_one_trial_a_parameter_and_three_more():
    few, enough = ((2, 5, 8), (2, 5, 8, 11))
    assert suggested(with_reports(FIRST_RUNG, {300: 0.2}, few)) == suggested(FIRST_RUNG)
    told = with_reports(FIRST_RUNG, {300: 0.2}, enough)
    upside_down = [(lr, values | {100: 1 - values[100]}) for lr, values in told]
    assert suggested(told) == suggested(upside_down), "the values below it mean nothing"
    assert suggested(told) != suggested(FIRST_RUNG)


def test_a_warm_start_is_compared_at_the_same_rung_as_far_as_it_reported_there():
    further = with_reports(FIRST_RUNG, FURTHER, (0, 1))
    assert suggested([], warm=further) == suggested([], warm=FIRST_RUNG)


def test_reports_of_a_warm_start_elsewhere_count_as_the_last_one_up_to_the_rung():
    elsewhere = [(lr, {80: values[100], 160: 0.3, 240: 0.2}) for lr, values in FIRST_RUNG[:2]]
    assert suggested(FIRST_RUNG[2:], warm=elsewhere) == suggested(FIRST_RUNG[2:], warm=FIRST_RUNG[:2])


@pytest.mark.parametrize("searcher", ["tpe", "gp"])
@pytest.mark.parametrize("reports", [{50: FAILED}, {100: 0.4, 200: FAILED}])
def test_a_trial_that_failed_is_bad_whatever_it_reported_and_wherever_it_failed(searcher, reports):
    rising = [(0.05 * 100 ** (number / 10), {100: 1 - 0.05 * number}) for number in range(8)]
    failed = [(0.05 * 100 ** (number / 10), reports) for number in (8, 9, 10)]
    assert suggested(rising, searcher=searcher) > 3
    assert suggested(rising + failed, searcher=searcher) < 2.5


def test_the_gaussian_process_learns_beside_a_failed_trial_and_however_few_of_many_seed_points_went_further():
    """Ten times the others' error would hide all their differences, and a random suggestion would be somewhere."""
    further = with_reports(FIRST_RUNG, FURTHER, (8, 9, 10, 11))
    for told in (further, [*further, (5.0, {200: FAILED})]):
        assert 0.25 < suggested(told, searcher="gp", num_seed_points=10) < 1.0


def test_what_has_stopped_below_the_compared_rung_is_not_suggested_again():
    falling = [(lr, {100: 0.5, 300: 0.6 - 0.01 * number}) for number, (lr, _) in enumerate(FIRST_RUNG[:12])]
    first = suggested(falling, searcher="gp")
    assert abs(math.log(suggested([*falling, (first, {100: 0.9})], searcher="gp") / first)) > 0.1


def test_a_searcher_that_raises_leaves_the_study_as_it_was():
    def broken(seed):
        class Broken(optuna.samplers.RandomSampler):
            def infer_relative_search_space(self, study, trial):
                raise ArithmeticError

        return Broken(seed)

    study = replayed(with_reports(FIRST_RUNG, FURTHER, (0, 1, 2, 3)), searcher=broken)
    before = [told_trial(trial) for trial in study._study.trials]
    with pytest.raises(ArithmeticError):
        study.suggest(99, place=99)
    assert [told_trial(trial) for trial in study._study.trials[: len(before)]] == before


def test_trials_of_a_warm_start_do_not_stop_those_of_the_search():
    median = optuna.pruners.MedianPruner(n_startup_trials=3, n_min_trials=3)
    study = replayed([], rungs=(), warm=with_reports(FIRST_RUNG, FURTHER, range(20)), searcher="random", pruner=median)
    study.suggest(1, place=1)
    assert not study.should_stop(1, 100, 5.0)


def test_a_trial_that_goes_on_counts_as_running_with_its_own_parameters(tmp_path):
    """TPE keeps away from running trials, so it must know where they are."""
    search = replace(SEARCH, slots=4, journal=False)
    with pytest.raises(KilledError):
        search.run(search.open(tmp_path, lines=16))
    history = History(tmp_path / HISTORY_FILE)
    study = search.study()
    state = SearchState(history, study, planned=PLANNED, seed=0)
    running = [trial for trial in study._study.trials if trial.state == TrialState.RUNNING]
    unfinished = list(history.unfinished)
    expected = [record.params for record in unfinished if record.stopped_at is None]
    assert [trial.params for trial in running] == expected
    assert len(running) >= 2
    assert [state.next_trial() for _ in unfinished] == unfinished


def test_an_unknown_searcher_is_named():
    with pytest.raises(MaskproError, match="searcher is 'hyperopt'; allowed: optuna, tpe, gp, qmc, random"):
        SearchStudy("hyperopt", distributions=DISTRIBUTIONS, pruner=optuna.pruners.NopPruner(), seed=0)


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        (
            TPESampler(seed=1),
            "searcher is a TPESampler, whose random numbers no resumed search could repeat; allowed",
        ),
        (lambda seed: CmaEsSampler(seed=seed), "returns a CmaEsSampler, which keeps a state that the history can't tell"),
        (lambda seed: "tpe", "searcher returns a str; allowed"),
        (3, "searcher is 3; allowed"),
    ],
)
def test_a_searcher_that_a_resumed_search_could_not_make_again_is_refused(searcher, message):
    with pytest.raises(MaskproError, match=message):
        check_searcher(searcher)


def test_a_suggestion_comes_from_the_best_and_the_newest_trials_alone(tmp_path):
    search = replace(SEARCH, searcher="random", num_trials=40, window=10, journal=False)
    state = search.open(tmp_path)
    search.run(state)
    study, records = state.study, state.history.searched
    ended = [record for record in records if not record.error]
    best = sorted((record.reports[300]["val_error"], record.number) for record in ended if 300 in record.reports)
    before = [told(trial) for trial in study._study.trials]
    with study._compared.in_study():
        seen = {trial.user_attrs["trial"] for trial in study._study.get_trials(states=[TrialState.COMPLETE])}
    newest = {record.number for record in ended[-5:]}
    others = [number for _, number in best if number not in newest and not state.history.trials[number].failure]
    assert seen == newest | set(others[:5])
    assert [told(trial) for trial in study._study.trials] == before


@pytest.mark.parametrize("restarts", [False, True])
def test_a_search_beyond_its_window_that_is_killed_suggests_what_it_would_have_anyway(tmp_path, restarts):
    search = replace(SEARCH, searcher="tpe", num_trials=24, window=8, restarts=restarts, journal=False)
    whole, unbounded = (tmp_path / name for name in ("whole", "unbounded"))
    search.run(search.open(whole_folder(whole)))
    replace(search, window=99).run(replace(search, window=99).open(whole_folder(unbounded)))
    suggested = [record.params for record in History(whole / HISTORY_FILE).searched]
    assert suggested != [record.params for record in History(unbounded / HISTORY_FILE).searched], "the window matters"
    for lines in (70, 95):
        folder = whole_folder(tmp_path / f"killed at {lines}")
        with pytest.raises(KilledError):
            search.run(search.open(folder, lines=lines))
        search.run(search.open(folder))
        assert [record.params for record in History(folder / HISTORY_FILE).searched] == suggested


def whole_folder(path):
    """A new folder."""
    path.mkdir()
    return path
