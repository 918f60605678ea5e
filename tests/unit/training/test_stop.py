"""Signals, the time budget and failures: noted in a flag, agreed on, raised at the end."""

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from fitb.base.errors import DataError, FitbError, SystemFault
from fitb.training import stop as stopping
from fitb.training.stop import SIGNALS, StopFlag


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


COUNTS = torch.tensor([1.0, 2.5], dtype=torch.float64)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_interrupts_nothing(number):
    flag = StopFlag().install()
    reason, counts, _ = flag.agree(COUNTS)
    assert reason is None and torch.equal(counts, COUNTS)
    flag.raise_failure()
    os.kill(os.getpid(), number)
    for _ in range(2):
        reason, counts, _ = flag.agree(COUNTS)
        assert reason == number.name and torch.equal(counts, COUNTS)


def test_a_second_interrupt_from_the_keyboard_means_it():
    StopFlag().install()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_forked_child_has_the_handlers_of_the_system():
    flag = StopFlag()
    flag.install()
    child = os.fork()
    if child == 0:
        default = all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)
        os._exit(0 if default else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert all(signal.getsignal(number) == flag._on_signal for number in SIGNALS)


def test_the_time_budget_stops_after_its_minutes_and_without_one_time_does_not(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    flag, endless = StopFlag(time_budget_min=2.0), StopFlag()
    now[0] += 119
    assert flag.agree(COUNTS)[0] is None
    now[0] += 2
    assert flag.agree(COUNTS)[0] == "time budget"
    assert endless.agree(COUNTS)[0] is None


@pytest.fixture
def agree(monkeypatch):
    """Let a flag agree with what others handed in; return its answer and what it handed in."""

    def agree(flag, *others, save_due=False):
        handed_in = []

        def all_reduce(tensor, group=None):
            handed_in.append(tensor.clone())
            for other in others:
                tensor += other

        ranks = SimpleNamespace(is_initialized=lambda: True, all_reduce=all_reduce)
        ranks.get_world_size, ranks.get_rank = lambda: 2, lambda: 0
        ranks.get_backend = lambda: "gloo"
        monkeypatch.setattr(stopping, "dist", ranks)
        return *flag.agree(COUNTS, save_due), handed_in[0]

    return agree


def test_one_rank_that_caught_a_signal_stops_every_rank(agree):
    signalled = StopFlag()
    signalled._on_signal(signal.SIGUSR1, None)
    theirs = agree(signalled)[-1]
    reason, counts, saving, _ = agree(StopFlag(), theirs, theirs)
    assert reason == "SIGUSR1" and not saving
    assert torch.equal(counts, 3 * COUNTS)


def test_one_rank_that_asks_for_a_checkpoint_gets_it_from_every_rank(agree):
    theirs = agree(StopFlag(), save_due=True)[-1]
    reason, counts, saving, _ = agree(StopFlag(), theirs)
    assert reason is None and torch.equal(counts, 2 * COUNTS) and saving


def read(error, good):
    for step in range(good):
        yield step, [f"rows of step {step}"]
    raise error


def test_a_failure_to_read_becomes_one_last_step_and_outweighs_a_signal():
    flag = StopFlag()
    flag._on_signal(signal.SIGTERM, None)
    steps = list(flag.guard(read(DataError("torn shard"), good=3)))
    assert steps == [*((i, [f"rows of step {i}"]) for i in range(3)), (3, None)]
    assert flag.agree(COUNTS)[0] == "failure"
    with pytest.raises(DataError, match="torn shard"):
        flag.raise_failure()


def test_of_several_failures_the_first_is_raised_unless_another_rules_a_restart_out():
    flag, first, last = StopFlag(), SystemFault("first"), DataError("torn shard")
    for error in (first, SystemFault("second"), last, SystemFault("third")):
        flag.fail(error)
    assert flag.agree(COUNTS)[0] == "failure"
    flag.forget(last)  # agreed on
    with pytest.raises(DataError, match="torn shard"):
        flag.raise_failure()


def test_guard_leaves_other_errors_alone():
    with pytest.raises(ZeroDivisionError):
        list(StopFlag().guard(read(ZeroDivisionError(), good=1)))


@pytest.mark.parametrize("error", [DataError("torn shard"), SystemFault("no space left")])
def test_a_failure_of_one_rank_is_the_error_of_every_rank_and_names_it(monkeypatch, agree, error):
    failing, other = StopFlag(), StopFlag()
    list(failing.guard(read(error, good=0)))
    theirs = agree(failing)[-1]
    raisers = []
    monkeypatch.setattr(stopping, "on_all", lambda action, world: raisers.append(action))
    for flag, others in ((failing, 0 * theirs), (other, theirs)):
        assert agree(flag, others)[0] in ("failure", "machine failure")
        with contextlib.suppress(FitbError):
            flag.raise_failure()
    own, none = raisers  # what each rank hands to all of them
    none()
    with pytest.raises(type(error), match=f"rank 0 on .*: {error}"):
        own()
