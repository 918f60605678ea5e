"""A save beside training: what it holds, when it waits, and what its failure does."""

import errno
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from fitb.base.errors import CheckpointError, SystemFault
from fitb.base.world import World
from fitb.config import CheckpointConfig
from fitb.model.fragments import joined, key_of
from fitb.rundir.checkpoints import commit
from fitb.rundir.names import checkpoint_name
from fitb.training.checkpoint import read
from fitb.training.saver import Saver, best_interval_s
from fitb.training.setup import open_run
from fitb.training.stop import StopFlag


class State:
    """One parameter of six elements, held in two fragments."""

    def __init__(self):
        self.whole = torch.zeros(6)

    def fragments(self):
        yield key_of("param/w", 0), self.whole[:4]
        yield key_of("param/w", 4), self.whole[4:]

    def shapes(self):
        return {"param/w": [2, 3]}


@pytest.fixture
def make_saver(run_config):
    def make(lead_s=None, **changes):
        config = run_config(checkpoint=CheckpointConfig(**changes))
        run, _ = open_run(config, World())
        engine = SimpleNamespace(state=State(), world=World(), device=torch.device("cpu"))
        stop = StopFlag()
        saver = Saver(run, engine, config, 0, stop, lead_s)
        return saver, engine.state.whole, run, stop

    return make


@pytest.fixture
def held(monkeypatch):
    """Commits that begin and then wait until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        assert go_on.wait(30)
        commit(*args)

    monkeypatch.setattr("fitb.training.checkpoint.commit", slow)
    return begun, go_on


def saved(run, step):
    return read(run.checkpoints / checkpoint_name(step)).tensors["param/w"]


def test_a_checkpoint_holds_the_step_that_it_was_begun_at_whatever_training_does_meanwhile(
    make_saver, held
):
    (saver, weights, run, stop), (begun, go_on) = make_saver(), held
    weights.fill_(1)
    saver.save({"step": 1}, ())
    assert begun.wait(30) and saver.step == 1
    weights.fill_(2)
    assert not list(run.checkpoints.glob("step-*"))
    go_on.set()
    saver.wait()
    assert torch.equal(saved(run, 1), torch.ones(2, 3))
    saver.save({"step": 2}, ())
    saver.wait()
    assert torch.equal(saved(run, 2), torch.full((2, 3), 2.0))
    assert not stop.requested()


def test_a_save_waits_for_the_one_before(make_saver, held):
    (saver, weights, run, _), (begun, go_on) = make_saver(), held
    saver.save({"step": 1}, ())
    assert begun.wait(30)
    weights.fill_(2)
    threading.Timer(0.2, go_on.set).start()
    saver.save({"step": 2}, ())
    assert torch.equal(saved(run, 1), torch.zeros(2, 3))
    saver.wait()
    assert torch.equal(saved(run, 2), torch.full((2, 3), 2.0))


@pytest.mark.parametrize(("lead_s", "warned"), [(0.0, True), (300.0, False), (None, False)])
def test_warning_of_slurm_that_is_shorter_than_a_save_is_warned_of(
    make_saver, caplog, lead_s, warned
):
    saver, *_ = make_saver(lead_s)
    saver.save({"step": 1}, ())
    saver.wait()
    remedies = ("--signal=B:USR1@60", "--signal_delay_s 60")
    assert [remedy in caplog.text for remedy in remedies] == [warned] * 2


def test_without_background_a_save_has_ended_when_training_goes_on(make_saver):
    saver, _, run, _ = make_saver(background=False)
    saver.save({"step": 1}, ())
    assert saved(run, 1).shape == (2, 3)


def test_the_failure_of_a_save_stops_the_run_at_a_step_and_is_raised_there(make_saver, monkeypatch):
    saver, _, run, stop = make_saver()

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        saver.save({"step": 1}, ())
        saver.wait()
    assert stop.agree(torch.zeros(1))[0] == "machine failure" and saver.step == -1
    saver.save({"step": 3}, ())  # as every stop does
    saver.wait()
    assert torch.equal(saved(run, 3), torch.zeros(2, 3))
    with pytest.raises(SystemFault, match="no space left while writing .*step-0000001"):
        stop.raise_failure()


def test_a_failure_that_nobody_has_noticed_is_forgotten_once_a_later_save_is_committed(
    make_saver, monkeypatch
):
    """The last save of a finished run was fine, and the run ended as a crash."""
    saver, _, run, stop = make_saver()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))
        saver.save({"step": 1}, ())
        saver.wait()
    saver.save({"step": 2}, ())
    saver.wait()
    stop.raise_failure()
    assert not stop.requested() and saved(run, 2).shape == (2, 3)


@pytest.mark.parametrize("error", [MemoryError("no room"), ZeroDivisionError()])
def test_an_error_of_any_type_is_the_failure_of_the_save(make_saver, monkeypatch, error):
    """The other ranks waited for this one until the watch ended the job."""
    saver, *_, stop = make_saver()

    def fail(*_args):
        raise error

    monkeypatch.setattr("fitb.training.checkpoint.write_tensors", fail)
    saver.save({"step": 1}, ())
    saver.wait()
    with pytest.raises(SystemFault, match=type(error).__name__):
        stop.raise_failure()


def test_copies_are_plain_tensors_that_remember_no_graph(make_saver):
    saver, weights, *_ = make_saver()
    weights.requires_grad_()
    for step in (1, 2):
        saver.save({"step": step}, ())
    saver.wait()
    assert not any(part.requires_grad for part in saver._copies.values())


def test_no_save_is_overdue_while_one_is_in_flight_unless_it_hangs(make_saver, held, monkeypatch):
    """An interval shorter than a save left one step for each."""
    (saver, *_), (begun, go_on) = make_saver(every_min=1e-4), held
    saver.save({"step": 1}, ())
    assert begun.wait(30)
    time.sleep(0.05)
    assert not saver.overdue()
    saver._begun_s -= saver._limits.hang_s  # it hangs: training waits, and the watch ends the job
    threading.Timer(0.2, go_on.set).start()
    began = time.monotonic()
    assert not saver.overdue()
    assert time.monotonic() - began > 0.1 and saver._thread is None
    time.sleep(0.05)
    assert saver.overdue()


def test_young_balances_what_saves_cost_and_what_failures_lose():
    config = CheckpointConfig(failures_per_day=2)
    best = best_interval_s(3.0, config)
    lost = {each: 3.0 / each + 2 / 86_400 * each / 2 for each in (best / 1.1, best, best * 1.1)}
    assert min(lost, key=lost.get) == best
    assert best_interval_s(3.0, CheckpointConfig(failures_per_day=0)) is None


@pytest.mark.parametrize(
    ("changes", "first_s"),
    [({}, 60), ({"every_min": 2}, 120), ({"every_steps": 7, "every_min": 2}, 120)],
)
def test_a_save_is_overdue_by_the_clock_and_the_next_one_by_what_it_took(
    make_saver, monkeypatch, changes, first_s
):
    saver, *_ = make_saver(**changes)
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("fitb.training.saver.time", clock)
    assert not saver.overdue()
    now += first_s
    assert saver.overdue()
    saver.save({"step": 1}, ())
    saver.wait()
    assert not saver.overdue()
    now += first_s - 1
    assert saver.overdue() == (not changes and saver._interval_s < 59)
    now += 3600
    assert saver.overdue()


def test_with_steps_alone_no_save_is_overdue(make_saver, monkeypatch):
    saver, *_ = make_saver(every_steps=7)
    late = SimpleNamespace(monotonic=lambda: math.inf)
    monkeypatch.setattr("fitb.training.saver.time", late)
    assert not saver.overdue()


@pytest.mark.parametrize("shape", [(3, 4), (12,), (2, 2, 3)])
@pytest.mark.parametrize("ends", [[12], [5, 12], [1, 2, 11, 12]])
def test_fragments_in_any_order_are_the_tensor(shape, ends):
    whole = torch.randn(shape)
    cuts = list(zip([0, *ends], ends, strict=False))
    parts = [(key_of("w", begin), whole.flatten()[begin:end]) for begin, end in cuts]
    assert torch.equal(joined(reversed(parts), {"w": shape})["w"], whole)
    assert torch.equal(joined([("w", whole)], {})["w"], whole)  # of format 1
    if len(parts) > 1:
        for wrong in (parts[1:], parts[:-1], [*parts, parts[0]], [parts[0], *parts[:-1]], []):
            with pytest.raises(CheckpointError, match="w has 12 elements"):
                joined(wrong, {"w": shape})
