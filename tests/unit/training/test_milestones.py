"""What happens every so often, and in which order."""

from types import SimpleNamespace

from fitb.base.world import World
from fitb.config import EvalConfig
from fitb.training import milestones
from fitb.training.setup import Progress


def test_the_student_is_exported_before_the_checkpoint_that_makes_a_run_finished(
    run_config, monkeypatch
):
    """A kill between the two left a finished run without a model, and nobody made one any more."""
    done, manifests = [], []
    monkeypatch.setattr(milestones, "export", lambda *args: done.append("export"))
    monkeypatch.setattr(
        milestones.checkpoint,
        "save",
        lambda root, tensors, manifest, **kwargs: (
            done.append("commit") or manifests.append(manifest) or (SimpleNamespace(name="s"), {})
        ),
    )
    student = SimpleNamespace(config=SimpleNamespace(trained_length=64))
    engine = SimpleNamespace(
        world=World(),
        check_finite=lambda step: None,
        state=SimpleNamespace(scalars=dict, full_tensors=list),
        objective=SimpleNamespace(student=SimpleNamespace(model=student)),
    )
    parts = SimpleNamespace(engine=engine, progress=Progress(step=9), fingerprint="f")
    run = SimpleNamespace(
        checkpoints=None, fence=None, attempt=1, event=lambda *args, **kwargs: None
    )
    config = run_config(steps=10, eval=EvalConfig(every_steps=0))
    milestones.save(parts, run, config, "")
    assert done == ["commit"]
    parts.progress.step = 10
    milestones.save(parts, run, config, "")
    assert done == ["commit", "export", "commit"]
    assert [manifest["trained_length"] for manifest in manifests] == [64, 64]
