"""Batches against what they promise: order, bounds, one thread, and nobody spoilt by others."""

import random
import threading
import time
from concurrent.futures import Future

import pytest

from fitb.serve.batcher import Batcher, Bounds, Job, QueueFull, Stopped, TooLate

WAIT_S = 20.0
FAR = 1e9


class Held:
    """Work that waits until it is let go; doubles numbers, and fails for negative ones."""

    def __init__(self, texts=4, tokens=100, queue=50):
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches = []
        self.observed = []
        self.threads = set()
        self.futures = {}
        self.batcher = Batcher(
            self.run,
            Bounds(texts, tokens, queue),
            self.settle,
            lambda texts, tokens: self.observed.append((texts, tokens)),
        )

    def run(self, numbers):
        self.threads.add(threading.get_ident())
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.go.wait(WAIT_S)
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]

    def settle(self, settled):
        for job, outcome in settled:
            future = self.futures[job]
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def submit(self, *numbers, tokens=1, deadline_s=FAR):
        jobs = [Job(number, tokens, deadline_s) for number in numbers]
        for job in jobs:
            self.futures[job] = Future()
        self.batcher.submit(jobs)
        return jobs, [self.futures[job] for job in jobs]

    def busy(self):
        """Begin a batch that holds the thread until `go` is set."""
        _, (future,) = self.submit(0)
        assert self.begun.wait(WAIT_S)
        return future


def results(futures):
    return [future.result(WAIT_S) for future in futures]


def test_a_lone_job_does_not_wait_for_others():
    held = Held()
    held.go.set()
    _, futures = held.submit(7)
    assert results(futures) == [14]
    assert held.batches == [[7]]


def test_what_waits_while_a_batch_runs_is_the_next_batch_in_order():
    held = Held(texts=4)
    first = held.busy()
    futures = [future for n in range(1, 7) for future in held.submit(n)[1]]
    held.go.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8, 10, 12]
    assert held.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert held.observed == [(1, 1), (4, 4), (2, 2)]


def test_a_batch_holds_no_more_tokens_than_allowed_unless_it_is_one_job():
    held = Held(texts=10, tokens=100)
    held.busy()
    futures = []
    for number, tokens in enumerate([60, 40, 1, 500, 50, 50], start=1):
        futures += held.submit(number, tokens=tokens)[1]
    held.go.set()
    results(futures)
    assert held.batches == [[0], [1, 2], [3], [4], [5, 6]]


def test_random_jobs_all_come_back_once_in_one_thread_and_within_bounds():
    draw = random.Random(3)
    held = Held(texts=5, tokens=64, queue=10_000)
    held.go.set()
    sizes = {n: draw.randint(1, 80) for n in range(1, 400)}
    futures = {}

    def client(numbers):
        for number in numbers:
            futures[number] = held.submit(number, tokens=sizes[number])[1][0]

    threads = [threading.Thread(target=client, args=(range(k, 400, 4),)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(future.result(WAIT_S) == 2 * number for number, future in futures.items())
    assert sorted(number for batch in held.batches for number in batch) == sorted(sizes)
    for batch in held.batches:
        assert len(batch) <= 5
        assert len(batch) == 1 or sum(sizes[number] for number in batch) <= 64
    assert len(held.threads) == 1


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    held = Held(queue=3)
    held.busy()
    held.submit(1, 2)
    with pytest.raises(QueueFull):
        held.submit(3, 4)
    assert len(held.batcher) == 2
    _, futures = held.submit(5)
    held.go.set()
    assert results(futures) == [10]
    assert [1, 2, 5] in held.batches


def test_work_whose_deadline_passed_in_the_queue_is_not_done():
    held = Held()
    held.busy()
    _, (late,) = held.submit(1, deadline_s=time.monotonic() - 1)
    _, (good,) = held.submit(2)
    held.go.set()
    assert good.result(WAIT_S) == 4
    with pytest.raises(TooLate):
        late.result(WAIT_S)
    assert held.batches == [[0], [2]]


def test_work_that_nobody_wants_any_more_is_not_done():
    held = Held()
    held.busy()
    (job,), _ = held.submit(1)
    _, (good,) = held.submit(2)
    job.wanted = False
    held.go.set()
    assert good.result(WAIT_S) == 4
    assert held.batches == [[0], [2]]


def test_one_that_fails_does_not_spoil_it_for_the_others_of_its_batch():
    held = Held()
    held.busy()
    futures = [held.submit(number)[1][0] for number in (1, -1, 2)]
    held.go.set()
    assert futures[0].result(WAIT_S) == 2 and futures[2].result(WAIT_S) == 4
    with pytest.raises(ValueError):
        futures[1].result(WAIT_S)


def test_closing_does_what_waits_and_takes_no_more():
    held = Held()
    first = held.busy()
    _, futures = held.submit(1, 2, 3)
    assert not held.batcher.close(0.01)  # still at work
    with pytest.raises(Stopped):
        held.submit(4)
    held.go.set()
    assert held.batcher.close(WAIT_S)
    assert results([first, *futures]) == [0, 2, 4, 6]
