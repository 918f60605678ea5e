"""Turns against what they promise: order, bounds, one thread, fairness, nobody spoilt by others."""

import threading
import time
from concurrent.futures import Future

import pytest
import torch

from fitb.infer.passes import Pass, PassLimits
from fitb.serve.scheduler import QueueFull, Request, Scheduler, SearchJob, Stopped, TooLate

WAIT_S = 20.0
FAR = 1e9


class Held:
    """A model that waits until it is let go; doubles numbers, and fails for negative ones."""

    def __init__(self, texts=4, tokens=100, queue=50, weight=100_000):
        self.go = threading.Event()
        self.begun = threading.Event()
        self.passes = []  # numbers of each
        self.observed = []
        self.threads = set()
        self.futures = {}
        self.closed = []
        self.during = {}  # by number, what is done in its pass
        self.scheduler = Scheduler(
            self.forward,
            self.settle,
            lambda texts, tokens: self.observed.append((texts, tokens)),
            PassLimits(tokens, 1000),
            most_texts=texts,
            most_waiting=queue,
            most_weight=weight,
        )

    def forward(self, passes):
        numbers = [one.rows[0][0] for one in passes]
        self.threads.add(threading.get_ident())
        self.passes.append(numbers)
        self.begun.set()
        assert self.go.wait(WAIT_S)
        for number in numbers:
            self.during.get(number, bool)()
        if min(numbers) < 0:
            raise ValueError("negative")
        return [torch.tensor([[2.0 * number]]) for number in numbers]

    def settle(self, settled):
        for job, outcome in settled:
            future = self.futures[job]
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def steps(self, number, length, passes):
        """Double a number again and again."""
        try:
            for _ in range(passes):
                yield None
                doubled = yield Pass([[number] * length], [[0]])
                number = int(doubled) % 10_007
            return number
        finally:
            self.closed.append(number)

    def submit(self, *numbers, length=1, passes=1, **settings):
        begins = [lambda n=n: (0, self.steps(n, length, passes)) for n in numbers]
        return self.start(*begins, **settings)

    def start(self, *begins, deadline_s=FAR, before_s=0.0):
        """Submit searches of one request; return it and their futures."""
        jobs = [SearchJob(begin) for begin in begins]
        self.futures |= {job: Future() for job in jobs}
        request = Request(list(jobs), deadline_s, expected_s=before_s)
        self.scheduler.submit(request)
        return request, [self.futures[job] for job in jobs]

    def busy(self):
        """Begin a pass that holds the thread until `go` is set."""
        _, (future,) = self.submit(0)
        assert self.begun.wait(WAIT_S)
        return future


def results(futures):
    return [future.result(WAIT_S) for future in futures]


def test_what_waits_while_a_pass_runs_shares_the_next_ones_in_order():
    held = Held(texts=4)
    first = held.busy()
    futures = [future for n in range(1, 7) for future in held.submit(n)[1]]
    held.go.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8, 10, 12]
    assert held.passes == [[0], [1, 2, 3, 4], [5, 6]]
    assert held.observed == [(1, 1), (4, 4), (2, 2)]


def test_a_pass_holds_no_more_tokens_than_allowed_unless_it_is_one_row():
    held = Held(texts=10, tokens=100)
    held.busy()
    futures = []
    for number, length in enumerate([60, 40, 1, 500, 50, 50], start=1):
        futures += held.submit(number, length=length)[1]
    held.go.set()
    results(futures)
    assert sorted(number for mine in held.passes for number in mine) == list(range(7))
    assert max(tokens for texts, tokens in held.observed if texts > 1) <= 100
    assert (1, 500) in held.observed


def test_a_text_of_many_passes_does_not_hold_up_another_request_until_its_end():
    held = Held(tokens=10)
    _, long = held.submit(1, length=10, passes=60)
    assert held.begun.wait(WAIT_S)
    _, short = held.submit(1000, length=10, passes=3)
    held.go.set()
    results([*short, *long])
    assert len(held.passes) == 63
    theirs = [number for number, mine in enumerate(held.passes) if mine[0] in (1000, 2000, 4000)]
    assert len(theirs) == 3 and theirs[-1] < 62


def test_requests_share_the_thread_whatever_the_number_of_their_texts():
    """The only text of a request comes before the second text of one of many."""
    held = Held(texts=1)
    held.busy()
    _, many = held.submit(*range(1, 9))
    _, one = held.submit(20)
    held.go.set()
    results([*many, *one])
    order = [number for mine in held.passes for number in mine]
    assert order.index(20) <= 2


def test_a_small_request_does_not_wait_for_large_ones_that_came_before():
    """It counted as served, from the start, what those had counted beforehand."""
    held = Held(texts=1)
    held.busy()
    large = [future for n in range(1, 6) for future in held.submit(n, before_s=5.0)[1]]
    small = []
    held.during[1] = lambda: small.extend(held.submit(9)[1])
    held.go.set()
    results(large)
    assert results(small) == [18]
    assert held.passes[:3] == [[0], [1], [9]]


def test_a_request_does_not_make_up_for_all_the_time_that_it_was_held_back():
    held = Held(texts=1, weight=10_000)
    held.during = {n: lambda: time.sleep(0.01) for n in (1, 2)}

    def steady(number, passes):
        for _ in range(passes):
            yield Pass([[number]], [[0]])

    # Two heavy ones, of which one is under way at a time.
    heavy = [held.start(lambda n=n: (9_000, steady(n, 20)))[1][0] for n in (1, 2)]
    held.go.set()
    while [2] not in held.passes:
        time.sleep(0.001)
    _, small = held.start(lambda: (0, steady(3, 1)))
    results([*heavy, *small])
    order = [number for mine in held.passes for number in mine]
    assert order.index(3) - order.index(2) < 12


def test_a_search_without_passes_lets_others_go_on_until_its_deadline():
    held = Held()
    held.go.set()

    def endless():
        while True:
            yield None

    request, late = held.start(lambda: (0, endless()))
    for number in range(3):
        assert results(held.submit(number)[1]) == [2 * number]
    request.deadline_s = time.monotonic() + 0.05
    with pytest.raises(TooLate):
        results(late)


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    held = Held(queue=3)
    held.busy()
    held.submit(1, 2)
    with pytest.raises(QueueFull):
        held.submit(3, 4)
    assert len(held.scheduler) == 2
    _, futures = held.submit(5)
    held.go.set()
    assert results(futures) == [10]
    assert len(held.scheduler) == 0


@pytest.mark.parametrize("changed", [{"deadline_s": 0.0}, {"wanted": False}], ids=str)
@pytest.mark.parametrize("is_queued", [True, False])
def test_work_for_which_nobody_waits_is_not_begun_or_dropped_between_two_passes(is_queued, changed):
    held = Held()
    if is_queued:
        held.busy()
    request, (late,) = held.submit(1, passes=1000)
    assert held.begun.wait(WAIT_S)
    vars(request).update(changed)
    held.go.set()
    with pytest.raises(TooLate):
        late.result(WAIT_S)
    assert results(held.submit(2)[1]) == [4]
    assert held.passes == [[0] if is_queued else [1], [2]]
    assert (1 in held.closed) == (not is_queued)


def test_few_heavy_searches_are_under_way_at_a_time_and_all_are_done():
    held = Held(texts=10, weight=25_000)
    held.go.set()
    under_way, most = set(), []

    def heavy(number):
        under_way.add(number)
        most.append(len(under_way))
        result = yield from held.steps(number, 1, 3)
        under_way.discard(number)
        return result

    weights = [10_000] * 7 + [90_000]  # the last more than all may have together
    futures = [
        held.start(lambda n=n, w=weight: (w, heavy(n)))[1][0]
        for n, weight in enumerate(weights, start=1)
    ]
    assert results(futures) == [8 * n for n in range(1, 9)]
    assert max(most) == 2


def test_one_that_fails_or_cannot_be_prepared_does_not_spoil_it_for_the_others_of_its_pass():
    held = Held()
    held.busy()
    (one,), (bad,), (unprepared,), (two,) = (
        held.start(begin)[1] if callable(begin) else held.submit(begin)[1]
        for begin in (1, -1, lambda: 1 / 0, 2)
    )
    held.go.set()
    assert results([one, two]) == [2, 4]
    with pytest.raises(ValueError):
        bad.result(WAIT_S)
    with pytest.raises(ZeroDivisionError):
        unprepared.result(WAIT_S)
    assert len(held.threads) == 1 and len(held.scheduler) == 0


def test_closing_does_what_waits_and_takes_no_more():
    held = Held()
    first = held.busy()
    _, futures = held.submit(1, 2, 3)
    assert not held.scheduler.close(0.01)  # still at work
    with pytest.raises(Stopped):
        held.submit(4)
    held.go.set()
    assert held.scheduler.close(WAIT_S)
    assert results([first, *futures]) == [0, 2, 4, 6]
