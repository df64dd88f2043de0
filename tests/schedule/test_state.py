"""Whole simulated searches: what a kill must not change, and what every search holds to."""

import contextlib
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.simulated_search import DISTRIBUTIONS, DiedError, KilledError, SimulatedSearch, learning_curve
from maskpro.schedule.early_stopping import SCHEDULERS
from maskpro.schedule.event_file import drop_torn_line, read_events
from maskpro.schedule.folder import HISTORY_FILE
from maskpro.schedule.history import PARTS, History
from maskpro.schedule.searcher import SEARCHERS
from maskpro.schedule.state import Plan, PlannedTrials, plain_metrics

# A suggestion of the Gaussian process takes a tenth of a second.
EVERY = [
    pytest.param(*names, marks=[pytest.mark.slow] if "gp" in names else [])
    for names in itertools.product(SCHEDULERS, SEARCHERS)
]
# Good, slow, failing at 200 samples, dying after 200 samples, bad.
SEED_POINTS = (
    {"lr": 1.0, "logits": 4.0, "batch_size": 32},
    {"lr": 0.8, "logits": 5.0, "batch_size": 128},
    {"lr": 4.5, "logits": 3.0, "batch_size": 16},
    {"lr": 2.0, "logits": 9.9, "batch_size": 64},
    {"lr": 0.05, "logits": 9.0, "batch_size": 16},
)
PLANNED = tuple(Plan(params=point, source=f"seed point {number}", seed=0) for number, point in enumerate(SEED_POINTS, 1))
SEARCH = SimulatedSearch(planned=PLANNED, num_trials=14)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch):
    """Nobody pulls the plug here, and a flush takes as long as all the rest."""
    monkeypatch.setattr("os.fsync", lambda file: None)


NO_CHECKPOINT = {"checkpoint": "", "checkpoint_samples": -1, "checkpoint_parts": ()}


def outcome(history):
    """All that a search has found out. A failed trial's last checkpoint is not part of it: a kill may come before."""
    return {
        number: replace(record, parts=0, **(NO_CHECKPOINT if record.failure else {}))
        for number, record in history.trials.items()
    }


def run_through(search, folder, kills=()):
    """Run a search to its end, through (lines, torn) kills; its history, and (trials at the start, replies) per session."""
    sessions = []
    for lines, torn in (*kills, (math.inf, False)):
        statuses = {}
        if (folder / HISTORY_FILE).exists():
            drop_torn_line(folder / HISTORY_FILE)
            statuses = {number: record.status for number, record in History(folder / HISTORY_FILE).trials.items()}
        replies = []
        with contextlib.suppress(KilledError):
            search.run(search.open(folder, lines=lines, torn=torn), replies)
        sessions.append((statuses, replies))
    return History(folder / HISTORY_FILE), sessions


def reports_of(sessions):
    """Every reply by trial and samples; a report that was repeated must have had the same reply."""
    replies = {}
    for reply in itertools.chain.from_iterable(replies for _, replies in sessions):
        assert replies.setdefault((reply.number, reply.samples), reply) == reply, "two replies to one report"
    return replies


def check_repetitions(sessions):
    """No ended trial is run again, and at most one report of each trial is repeated by each session."""
    seen = Counter()
    for statuses, replies in sessions:
        # A stopped trial may go on after all, from where it stopped.
        assert all(statuses.get(reply.number, "unfinished") in ("unfinished", "stopped") for reply in replies)
        repeated = Counter(reply.number for reply in replies if seen[reply.number, reply.samples])
        assert max(repeated.values(), default=0) <= 1
        seen.update((reply.number, reply.samples) for reply in replies)


def check_removals(folder):
    """A trial goes on only from what is left of its checkpoint; one that has ended keeps its mask alone, if at all."""
    left = {}
    for event in read_events(folder / HISTORY_FILE):
        kind, number = event["event"], event.get("trial")
        if kind == "checkpoint":
            left[number] = list(PARTS)
        elif kind == "removed":
            assert len(event["left"]) < len(left[number])
            left[number] = event["left"]
        elif kind == "go_on" and number in left:
            assert left[number] == (["mask", "logits"] if event["promoted"] else left[number])
            assert "logits" in left[number]
    history = History(folder / HISTORY_FILE)
    expected = {"completed": ("mask",), "stopped": ("mask", "logits"), "failed": ()}
    for record in history.trials.values():
        assert record.checkpoint_parts == expected[record.status] or not record.checkpoint


def num_lines(folder):
    return len((folder / HISTORY_FILE).read_bytes().splitlines())


def spread(count, total):
    """`count` whole numbers from 0 to `total` - 1."""
    return sorted({round(index * (total - 1) / (count - 1)) for index in range(count)})


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "searcher"), EVERY)
def test_a_kill_after_any_line_changes_nothing_in_a_search_with_one_slot(tmp_path, scheduler, searcher):
    search = replace(SEARCH, scheduler=scheduler, searcher=searcher)
    (tmp_path / "whole").mkdir()
    whole, whole_sessions = run_through(search, tmp_path / "whole")
    statuses = Counter(record.status for record in whole.trials.values())
    assert statuses["failed"] >= 2
    assert statuses["completed"] >= 2
    assert statuses["stopped"] >= (scheduler != "none")
    # A Gaussian process is fitted anew for each suggestion: a second of a core for each kill.
    kills = 50 if (scheduler, searcher) == ("asha", "optuna") else 8 if searcher == "gp" else 20
    for lines in spread(kills, num_lines(tmp_path / "whole")):
        folder = tmp_path / str(lines)
        folder.mkdir()
        found, sessions = run_through(search, folder, [(lines, lines % 2 == 1)])
        assert outcome(found) == outcome(whole), f"killed after {lines} lines"
        assert reports_of(sessions) == reports_of(whole_sessions)
        check_repetitions(sessions)
        check_removals(folder)


@pytest.mark.parametrize(("scheduler", "searcher"), EVERY)
def test_kills_in_a_row_change_nothing_in_a_search_with_one_slot(tmp_path, scheduler, searcher):
    search = replace(SEARCH, scheduler=scheduler, searcher=searcher)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, whole_sessions = run_through(search, tmp_path / "whole")
    # A session that writes fewer than three lines may not come further than the one before it.
    lengths = [7, 3, 3, 3, 4, 1, 0, 1, 2, 5, 3, 8, 11, 3, 3, 13, 0, 0, 6, 4]
    found, sessions = run_through(search, tmp_path / "killed", [(lines, lines % 2 == 0) for lines in lengths])
    assert outcome(found) == outcome(whole)
    assert reports_of(sessions) == reports_of(whole_sessions)
    check_repetitions(sessions)
    assert found.num_sessions == len(lengths) + 1 - sum(lines == 0 for lines in lengths)


@pytest.mark.parametrize(("scheduler", "searcher"), EVERY)
def test_a_kill_of_a_search_with_several_slots_loses_no_trial_and_repeats_none(tmp_path, scheduler, searcher):
    search = replace(SEARCH, scheduler=scheduler, searcher=searcher, slots=3)
    (tmp_path / "whole").mkdir()
    run_through(search, tmp_path / "whole")
    # What is suggested is no part of these laws.
    for first in spread(3 if searcher == "gp" else 12, num_lines(tmp_path / "whole")):
        folder = tmp_path / str(first)
        folder.mkdir()
        found, sessions = run_through(search, folder, [(first, False), (17, True)])
        assert list(found.trials) == list(range(1, 15)), "every number once"
        assert Counter(record.seed_point for record in found.trials.values()) == {None: 9, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
        assert not found.unfinished
        check_removals(folder)
        reports_of(sessions)
        check_repetitions(sessions)
        for number in range(1, 6):
            assert found.trials[number].params == SEED_POINTS[number - 1]


def schedule_curve(params, samples, budget):
    """A run in the middle of its schedules is far above where it ends, the more the larger its lr."""
    return learning_curve(params, samples) + 0.1 * params["lr"] * (1 - samples / budget)


RESTARTS = replace(SEARCH, restarts=True, curve=schedule_curve, min_completed=2)


def test_where_promoted_trials_restart_each_rung_holds_the_ends_of_runs_of_its_length(tmp_path):
    history, _ = run_through(RESTARTS, tmp_path)
    statuses = Counter(record.status for record in history.trials.values())
    assert statuses["completed"] >= 2
    assert statuses["stopped"] >= 5
    for record in history.trials.values():
        if record.failure:
            continue
        rungs = [samples for samples in (100, 300, 900) if samples <= record.samples]
        assert record.samples == rungs[-1]
        for samples in rungs:
            assert record.reports[samples]["val_error"] == schedule_curve(record.params, samples, samples)


@pytest.mark.parametrize("slots", [1, 3])
def test_where_promoted_trials_restart_a_rung_promotes_no_more_than_its_share_even_of_ever_better_trials(tmp_path, slots):
    """Each suggestion is better than the one before, so each is among the best of its rung when it comes."""
    plans = tuple(Plan(params={"lr": 3.0 * 0.9**number}, source="replay", seed=0) for number in range(36))
    search = replace(
        RESTARTS,
        planned=plans,
        num_trials=36,
        curve=lambda params, samples, budget: params["lr"],
        pace=lambda params: 1.0,
        slots=slots,
        distributions={"lr": DISTRIBUTIONS["lr"]},
    )
    history, _ = run_through(search, tmp_path)
    reached = Counter(record.samples for record in history.trials.values())
    assert reached == {100: 36 - 12, 300: 12 - 4, 900: 4}


@pytest.mark.slow
def test_where_promoted_trials_restart_a_kill_after_any_line_changes_nothing(tmp_path):
    (tmp_path / "whole").mkdir()
    whole, _ = run_through(RESTARTS, tmp_path / "whole")
    for lines in spread(50, num_lines(tmp_path / "whole")):
        folder = tmp_path / str(lines)
        folder.mkdir()
        found, _ = run_through(RESTARTS, folder, [(lines, lines % 2 == 1)])
        assert outcome(found) == outcome(whole), f"killed after {lines} lines"


def test_where_promoted_trials_restart_a_replay_runs_each_trial_once_at_the_length_it_came_to(tmp_path):
    (tmp_path / "whole").mkdir()
    whole, _ = run_through(RESTARTS, tmp_path / "whole")
    planned = tuple(
        Plan(params=record.params, source="replay", seed=0, samples=record.samples if record.stopped else None)
        for record in whole.trials.values()
    )
    (tmp_path / "replay").mkdir()
    again = replace(RESTARTS, planned=planned, scheduler="none", min_completed=0)
    found, _ = run_through(again, tmp_path / "replay")
    assert found.trials.keys() == whole.trials.keys()
    for number, record in found.trials.items():
        assert record.last == whole.trials[number].last | {"num_samples_trained": record.samples}
    assert {record.trained for record in whole.trials.values() if record.status == "completed"} == {100 + 300 + 900}


def test_as_many_stopped_trials_at_a_time_get_a_last_chance_as_are_missing(tmp_path):
    plans = tuple(replace(plan, samples=100) for plan in PLANNED[:2] + PLANNED[4:])
    state = replace(SEARCH, planned=plans, num_trials=3, scheduler="none", min_completed=2).open(tmp_path)
    for number, error in enumerate((0.3, 0.1, 0.2), 1):
        assert state.next_trial().number == number
        metrics = {"num_samples_seen": 100, "val_error": error, "done": False}
        assert state.report(number, metrics)
        state.history.checkpoint(number, f"trial_{number}", 100)
        state.finish(number)
    assert [state.next_trial().number for _ in range(2)] == [2, 3]
    assert state.next_trial() is None
    assert not state.is_over
    state.report(2, {"num_samples_seen": 900, "val_error": 0.05, "done": True})
    state.history.checkpoint(2, "trial_2", 900)
    state.finish(2)
    assert state.next_trial() is None, "the other one still runs"


def test_the_same_search_run_twice_is_the_same_with_several_slots_too(tmp_path):
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        history, sessions = run_through(replace(SEARCH, slots=3), tmp_path / name)
        runs.append((history.trials, sessions))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize(("scheduler", "searcher"), EVERY)
def test_every_scheduler_and_searcher_runs_a_search_to_its_end(tmp_path, scheduler, searcher, slots):
    search = replace(SEARCH, scheduler=scheduler, searcher=searcher, slots=slots, num_trials=15)
    state = search.open(tmp_path)
    replies = search.run(state)
    assert state.next_trial() is None
    records = list(state.history.trials.values())
    assert len(records) == 15
    assert {record.status for record in records} <= {"completed", "stopped", "failed"}
    assert max(reply.samples for reply in replies) == search.max_samples
    for record in records:
        assert (record.status == "completed") == (record.samples == search.max_samples)
        assert (record.status == "stopped") <= (scheduler != "none")
        assert record.stopped == (record.status == "stopped"), "whoever ends by itself is not stopped"
    failed, dead = records[2], records[3]
    assert (failed.status, failed.last["val_error"], failed.samples) == ("failed", 10.0, 200)
    assert (dead.status, dead.failure, dead.samples) == ("failed", "the worker died: out of memory", 200)
    # Curves fall, so whoever is stopped is stopped on the evidence of a trial that ends no worse.
    best = min((record for record in records if not record.failure), key=lambda record: record.last["val_error"])
    assert best.status == "completed"


def test_a_dead_trial_never_becomes_the_best_even_with_the_lowest_loss(tmp_path):
    def curve(params, samples, budget):
        if params["logits"] > 9.5 and samples == 900:
            raise DiedError("out of memory")
        return learning_curve({**params, "logits": 4.0}, samples) - 0.05 * (params["logits"] > 9.5)

    search = replace(SEARCH, curve=curve, scheduler="none", num_trials=6)
    state = search.open(tmp_path)
    search.run(state)
    lowest = min(state.history.trials.values(), key=lambda record: record.last["val_error"])
    assert (lowest.number, lowest.status) == (4, "failed")
    assert state.study._study.best_trial.user_attrs["trial"] != 4


@pytest.mark.parametrize("slots", [1, 3])
def test_an_extension_adds_so_many_trials_and_leaves_the_others(tmp_path, slots):
    search = replace(SEARCH, slots=slots)
    first = search.open(tmp_path)
    search.run(first)
    state = search.open(tmp_path, extend=5)
    assert state.history.trials == first.history.trials
    replies = search.run(state)
    assert list(state.history.trials) == list(range(1, 20))
    for number, record in first.history.trials.items():
        assert record.reports.items() <= state.history.trials[number].reports.items(), "some may have gone on, none is lost"
        assert record.status == "stopped" or record == state.history.trials[number]
    assert {reply.number for reply in replies} >= set(range(15, 20))
    assert search.run(search.open(tmp_path)) == [], "a finished search that goes on has nothing to do"


def test_an_extended_search_is_the_longer_search(tmp_path):
    for name in ("extended", "longer"):
        (tmp_path / name).mkdir()
    run_through(SEARCH, tmp_path / "extended")
    extended = SEARCH.open(tmp_path / "extended", extend=5)
    SEARCH.run(extended)
    longer, _ = run_through(replace(SEARCH, num_trials=19), tmp_path / "longer")
    assert outcome(extended.history) == outcome(longer)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_replayed_plans_give_the_same_reports_in_another_order(tmp_path, searcher):
    for name in ("source", "replay"):
        (tmp_path / name).mkdir()
    source, _ = run_through(replace(SEARCH, searcher=searcher, slots=3, num_trials=20), tmp_path / "source")
    assert sum(record.stopped for record in source.trials.values()) >= 3
    plans = [
        Plan(
            params=record.params, source=record.source, seed=record.seed, samples=record.samples if record.stopped else None
        )
        for record in source.searched
    ]
    again = replace(SEARCH, searcher=searcher, planned=plans, num_trials=20, scheduler="none")
    replayed, _ = run_through(again, tmp_path / "replay", [(lines, lines % 2 == 0) for lines in (45, 30, *([4, 7] * 12))])
    assert {record.number: (record.reports, record.status) for record in replayed.searched} == {
        record.number: (record.reports, record.status) for record in source.searched
    }


def test_a_replay_keeps_nothing_of_what_stopped_and_runs_none_of_it_on(tmp_path):
    """What stopped in the search that is done again is never promoted, however many masks are to be evaluated."""
    plans = [Plan(params=SEED_POINTS[0], source="optuna", seed=0, samples=samples) for samples in (100, 300, None)]
    search = replace(SEARCH, planned=plans, num_trials=3, scheduler="none", min_completed=0)
    run_through(search, tmp_path)
    history = search.open(tmp_path).history
    assert [record.status for record in history.searched] == ["stopped", "stopped", "completed"]
    assert [record.checkpoint_parts for record in history.searched] == [(), (), ("mask",)]


def test_a_trial_whose_checkpoint_is_gone_is_never_promoted(tmp_path):
    """Even where it is the best of its rung, and too few have run to their full budget."""
    search = replace(SEARCH, planned=(), num_trials=4)
    state = search.open(tmp_path)
    losses = (0.5, 0.6, 0.7, 0.8)
    for loss in losses:
        number = state.next_trial().number
        assert state.report(number, SEARCH.metrics(loss, 100)) or number == 3
        state.history.checkpoint(number, "somewhere", 100)
        if number == 1:
            state.history.removed(1, ())
        state.finish(number)
    assert [record.status for record in state.history.searched] == ["stopped"] * 4
    reopened = search.open(tmp_path)
    for source in (state, reopened):
        assert source._halving._last_of_the_best(100) == (0.5, 1)
        assert source._to_go_on().number == 2


def test_a_promoted_trial_goes_on_from_its_coarse_logits_until_its_next_checkpoint(tmp_path):
    history = History(tmp_path / HISTORY_FILE)
    history.start({"lr": 1.0}, source="optuna", seed=0)
    history.report(1, plain_metrics(SEARCH.metrics(0.5, 100)), stopped=True)
    history.checkpoint(1, "first", 100)
    told = []
    for event in (
        lambda: history.go_on(1, promoted=True),
        lambda: history.go_on(1, promoted=False),  # its process was lost, or the session killed
        lambda: history.report(1, plain_metrics(SEARCH.metrics(0.4, 200)), stopped=False),
        lambda: history.checkpoint(1, "second", 200),
        lambda: history.go_on(1, promoted=False),
    ):
        event()
        told.append(History(tmp_path / HISTORY_FILE).trials[1].promoted)
    assert told == [True, True, True, False, False]


def test_a_repeated_report_gets_its_first_reply_and_is_not_written_again(tmp_path):
    """Within a session: the trial's process was lost, and the trial started again elsewhere."""
    state = replace(SEARCH, num_trials=5, planned=()).open(tmp_path)
    first = [state.next_trial().number for _ in range(4)]
    losses = dict(zip(first, (0.8, 0.7, 0.6, 0.7), strict=True))
    replies = {number: state.report(number, SEARCH.metrics(losses[number], 100)) for number in first}
    assert list(replies.values()) == [True, True, False, True]
    lines = num_lines(tmp_path)
    for number in first:
        assert state.report(number, SEARCH.metrics(losses[number], 100)) == replies[number]
    assert num_lines(tmp_path) == lines


def test_a_trial_that_goes_back_several_reports_ends_where_it_was_told_to_end(tmp_path):
    search = replace(SEARCH, planned=[Plan(params=SEED_POINTS[0], source="seed point 1", seed=0, samples=300)])
    state = search.open(tmp_path)
    number = state.next_trial().number
    for _ in range(2):
        replies = [state.report(number, SEARCH.metrics(0.5, samples)) for samples in (100, 200, 300)]
        assert replies == [False, False, True]
        state = search.open(tmp_path)
        assert state.next_trial().number == number, "it has no checkpoint of its end"


def test_a_trial_that_fails_where_it_had_reported_before_has_ended(tmp_path):
    """It went back to a checkpoint, and runs out of memory this time: it must not be waited for, nor run again."""
    search = replace(SEARCH, num_trials=2)
    state = search.open(tmp_path)
    plans = [Plan(params=SEED_POINTS[0], source="confirmation of trial 1", seed=1)]
    for source in (state, PlannedTrials(state.history, plans)):
        number = source.next_trial().number
        for samples in (100, 200):
            source.report(number, SEARCH.metrics(0.5, samples))
        state.history.checkpoint(number, "somewhere", 100)
        failed = {"num_samples_seen": 200, "val_error": 10.0, "failure": "out of memory", "done": True}
        source.report(number, failed)
        source.report(number, failed)
        state.history.checkpoint(number, "somewhere", 200)
        source.finish(number)
        assert (state.history.trials[number].status, state.history.trials[number].failure) == ("failed", "out of memory")
    assert search.open(tmp_path).history.trials == state.history.trials


def test_a_trial_that_is_put_back_is_the_next_to_go_on(tmp_path):
    state = replace(SEARCH, num_trials=2).open(tmp_path)
    plans = [Plan(params=SEED_POINTS[0], source="confirmation of trial 1", seed=1)]
    for source in (state, PlannedTrials(state.history, plans)):
        number = source.next_trial().number
        source.report(number, SEARCH.metrics(0.5, 100))
        state.history.checkpoint(number, "somewhere", 100)
        source.put_back(number)
        assert not source.is_over
        record = source.next_trial()
        assert (record.number, record.parts, record.checkpoint) == (number, 2, "somewhere")


CONFIRMATIONS = [
    Plan(params=SEED_POINTS[number - 1], source=f"confirmation of trial {number}", seed=seed)
    for number, seed in ((1, 1), (1, 2), (2, 1))
]


def test_confirmations_are_run_once_each_and_go_on_after_a_kill(tmp_path):
    SEARCH.run(SEARCH.open(tmp_path))
    before = History(tmp_path / HISTORY_FILE)
    for lines, torn in ((1, True), (1 + 8, False), (1 + 8, True), (1 + 30, False), (math.inf, False)):
        state = SEARCH.open(tmp_path, lines=lines, torn=torn)
        assert state.next_trial() is None, "an unfinished confirmation is not the search's to run"
        source = PlannedTrials(state.history, CONFIRMATIONS)
        left = source.num_left
        assert len(state.history.trials) + source.num_new == 14 + 3, "those that were begun are no new ones"
        try:
            SEARCH.run(source)
        except KilledError:
            drop_torn_line(tmp_path / HISTORY_FILE)
            assert PlannedTrials(History(tmp_path / HISTORY_FILE), CONFIRMATIONS).num_left <= left
    history = History(tmp_path / HISTORY_FILE)
    assert PlannedTrials(history, CONFIRMATIONS).num_left == 0
    assert SEARCH.run(PlannedTrials(history, CONFIRMATIONS)) == []
    confirmed = [record for record in history.trials.values() if record.is_confirmation]
    assert [(record.number, record.source, record.seed, record.status) for record in confirmed] == [
        (number, plan.source, plan.seed, "completed") for number, plan in enumerate(CONFIRMATIONS, 15)
    ]
    assert history.searched == list(before.trials.values()), "they take no part in the search"
    assert len(SEARCH.open(tmp_path).study._study.trials) == 14


def test_planned_trials_leave_alone_what_was_not_planned(tmp_path):
    """Such as the search's own unfinished trials, and those that confirmed a trial which is no longer among the best."""
    with pytest.raises(KilledError):
        SEARCH.run(SEARCH.open(tmp_path, lines=5))
    history = History(tmp_path / HISTORY_FILE)
    history.start(SEED_POINTS[4], source="confirmation of trial 5", seed=1)
    replies = SEARCH.run(PlannedTrials(history, CONFIRMATIONS))
    assert {reply.number for reply in replies} == {3, 4, 5}
    assert [record.number for record in history.unfinished] == [1, 2]


def test_an_extension_after_confirmations_suggests_what_it_would_without_them(tmp_path):
    """Their numbers are taken, so the search goes on with the next free one; everything else is the same."""
    histories = []
    for name in ("confirmed", "plain"):
        folder = tmp_path / name
        folder.mkdir()
        SEARCH.run(SEARCH.open(folder))
        if name == "confirmed":
            SEARCH.run(PlannedTrials(History(folder / HISTORY_FILE), CONFIRMATIONS))
        state = SEARCH.open(folder, extend=4)
        SEARCH.run(state)
        histories.append(state.history)
    confirmed, plain = (history.searched for history in histories)
    assert [record.number for record in confirmed] == [*range(1, 15), *range(18, 22)]
    assert len(histories[0].trials) == 21
    for ours, theirs in zip(confirmed, plain, strict=True):
        assert (ours.params, ours.reports, ours.status) == (theirs.params, theirs.reports, theirs.status)


def test_a_trial_under_way_goes_on_in_a_session_with_fewer_slots(tmp_path):
    wide = replace(SEARCH, slots=5)
    with pytest.raises(KilledError):
        wide.run(wide.open(tmp_path, lines=30))
    assert len(History(tmp_path / HISTORY_FILE).unfinished) >= 3
    history, sessions = run_through(replace(SEARCH, slots=2), tmp_path)
    assert len(history.trials) == 14
    assert not history.unfinished
    check_repetitions(sessions)
