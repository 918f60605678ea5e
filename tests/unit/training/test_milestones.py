"""What happens every so often, and in which order."""

from types import SimpleNamespace

from fitb.base.world import World
from fitb.config import EvalConfig
from fitb.rundir.clock import Clock
from fitb.training import milestones
from fitb.training.setup import Progress


def test_the_student_is_exported_before_the_checkpoint_that_makes_a_run_finished(
    run_config, monkeypatch
):
    """A kill between the two left a finished run without a model, and nobody made one any more."""
    done, manifests = [], []
    monkeypatch.setattr(milestones, "export", lambda *args: done.append("export"))

    def begin(manifest, keep_steps):
        done.append("commit")
        manifests.append(manifest)

    student = SimpleNamespace(config=SimpleNamespace(trained_length=64))
    engine = SimpleNamespace(
        world=World(),
        check_finite=lambda step: None,
        state=SimpleNamespace(scalars=dict),
        objective=SimpleNamespace(student=SimpleNamespace(model=student)),
    )
    saver = SimpleNamespace(save=begin)
    parts = SimpleNamespace(engine=engine, saver=saver, progress=Progress(step=9), fingerprint="f")
    run = SimpleNamespace(attempt=1, clock=Clock(0.0))
    config = run_config(steps=10, eval=EvalConfig(every_steps=0))
    milestones.save(parts, run, config, "")
    assert done == ["commit"]
    parts.progress.step = 10
    milestones.save(parts, run, config, "")
    assert done == ["commit", "export", "commit"]
    assert [manifest["trained_length"] for manifest in manifests] == [64, 64]


def test_a_stop_saves_again_what_has_failed_and_only_that(monkeypatch):
    saved = []
    saver = SimpleNamespace(step=7, failing=False)
    saver.wait = lambda: setattr(saver, "step", -1) if saver.failing else None
    parts = SimpleNamespace(saver=saver, progress=Progress(step=7))

    def save(*_args):
        saved.append(parts.progress.step)
        saver.step, saver.failing = parts.progress.step, False

    monkeypatch.setattr(milestones, "save", save)
    run = SimpleNamespace(clock=Clock(0.0))
    milestones.save_last(parts, run, None, "")
    assert saved == []
    saver.failing = True  # found out while it is waited for
    milestones.save_last(parts, run, None, "")
    assert saved == [7]
    parts.progress.step = 9
    milestones.save_last(parts, run, None, "")
    assert saved == [7, 9]
