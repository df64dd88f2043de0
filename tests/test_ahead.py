"""Values made ahead are those that would have been made, each made once."""

import threading

from maskpro.ahead import Ahead


def test_what_was_foreseen_is_made_once_and_what_was_not_is_made_when_it_is_taken():
    made = []

    def square(key):
        made.append((key, threading.current_thread() is threading.main_thread()))
        return key * key

    ahead = Ahead(threads=2)
    ahead.foresee([1, 2], square)
    ahead.foresee([2, 3], square)
    assert [ahead.take(key, square) for key in (1, 2, 3, 4)] == [1, 4, 9, 16]
    assert sorted(made) == [(1, False), (2, False), (3, False), (4, True)]


def test_what_was_dropped_is_made_anew():
    made = []
    ahead = Ahead(threads=1)
    ahead.foresee([1], lambda key: made.append("old") or "old")
    ahead.drop()
    assert made == ["old"], "no thread is at work any more"
    assert ahead.take(1, lambda key: "new") == "new"
