"""Periodic work of a run: validate, export the best student, save a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import BertForMaskedLM
from transformers.utils.logging import disable_progress_bar

from fitb.base import fsio
from fitb.base.errors import DataError
from fitb.config import Config
from fitb.evaluation.count import count
from fitb.evaluation.metrics import metrics_of
from fitb.evaluation.row_counts import RowCounts
from fitb.infer.card import (
    Card,
    Metric,
    code_facts,
    data_facts,
    model_card,
    model_facts,
    training_facts,
)
from fitb.model import exported
from fitb.model.load import num_parameters
from fitb.model.positions import KEY, trained_length
from fitb.model.saved import weights_of
from fitb.rundir import names
from fitb.rundir.checkpoints import step_of
from fitb.rundir.clock import EXPORT, SAVE, VALIDATION
from fitb.rundir.names import STEP
from fitb.rundir.provenance import describe_code
from fitb.rundir.writer import RunDir
from fitb.training.collectives import on_main
from fitb.training.setup import Parts, Progress
from fitb.training.stop import StopFlag

logger = logging.getLogger(__name__)
_EVAL_BATCH = 64


def due(step: int, every: int, config: Config) -> bool:
    """Return whether work is due: every `every` steps (0: never), before a decay, and last."""
    return every > 0 and (step % every == 0 or step in (before_decay(config), config.steps))


def save_due(progress: Progress, config: Config) -> bool:
    """Return whether a checkpoint is due, whatever the time since the last.

    Where saves follow the clock, the best step has one too.
    """
    step, every = progress.step, config.checkpoint.every_steps
    if every is None:
        return step in (before_decay(config), config.steps, progress.best_step)
    return due(step, every, config)


def before_decay(config: Config) -> int:
    """Return the last step before a decay, whose checkpoint is kept to branch from; 0 for none."""
    return config.decay_begins if config.optim.decay_steps else 0


def out_of_patience(progress: Progress, config: Config) -> bool:
    """Return whether the last `eval.patience` validations have not improved the best loss."""
    if not config.eval.patience or progress.best_step is None or progress.pending is not None:
        return False
    return progress.step - progress.best_step >= config.eval.patience * config.eval.every_steps


def evaluate(
    parts: Parts, run: RunDir, config: Config, stop: StopFlag, metrics: dict[str, float]
) -> dict[str, float]:
    """Validate with fixed masks and export the student if it is the best so far.

    Collective: each rank evaluates its share of the rows. A stop is noticed after each batch; then
    the metrics are kept in the checkpoint, and the validation begins again after the resume.

    Args:
        metrics: metrics of the step's training.
    Returns: those and `val/...`, the same on every rank; empty if it was left.
    Raises: TrainingError if an update since the last check was not finite.
    """
    with run.clock.during(VALIDATION):
        validated = _validate(parts, config, stop, metrics)
    if validated and parts.progress.best_step == parts.progress.step:
        export(parts, run, config, validated)
    return metrics | validated if validated else {}


def _validate(
    parts: Parts, config: Config, stop: StopFlag, metrics: dict[str, float]
) -> dict[str, float]:
    """Return `val/...` over all rows, and note the best step; empty if it was left."""
    progress = parts.progress
    parts.engine.check_finite(progress.step)
    assert parts.validation is not None
    validation, world = parts.validation, parts.engine.world
    rows, found = validation.rows, []  # as many on every rank: a forward of ZeRO 3 is collective
    for begin in range(0, len(rows), _EVAL_BATCH):
        if stop.leaving():
            logger.info(
                "%s at row %d of %d of a validation: it begins again after the resume",
                *(stop.reason, begin, len(rows)),
            )
            progress.pending = metrics
            return {}
        found.append(
            count(
                parts.engine.objective.student.model,
                validation.cached,
                rows[begin : begin + _EVAL_BATCH],
                vocabulary=parts.vocabulary,
                mask=config.mask,
                batch_rows=_EVAL_BATCH,
                mask_version=config.algorithms.masks,
            )
        )
    progress.pending, counts = None, RowCounts.joined(found)
    totals = torch.from_numpy(counts.sums[: validation.num_own, 0].sum(axis=0))
    if world.size > 1:
        totals = totals.to(parts.engine.device)
        dist.all_reduce(totals)
    values = {k: float(v) for k, v in metrics_of(totals.cpu().numpy()).items()}
    validated = {f"val/{'loss_mlm' if k == 'loss' else k}": v for k, v in values.items()}
    if progress.best_loss is None or values["loss"] < progress.best_loss:
        progress.best_loss, progress.best_step = values["loss"], progress.step
    return validated


def export(parts: Parts, run: RunDir, config: Config, metrics: dict[str, float]) -> None:
    """Write the student in fp32 as a Hugging Face folder. Collective; rank 0 writes."""
    prefix = "param/student.model."
    with run.clock.during(EXPORT):
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in parts.engine.state.full_tensors(moments=False)
            if name.startswith(prefix)
        }
        if parts.engine.world.is_main:
            _write_export(weights, parts.progress.step, parts, run, config, metrics)


def _write_export(
    weights: dict[str, torch.Tensor],
    step: int,
    parts: Parts,
    run: RunDir,
    config: Config,
    metrics: Mapping[str, float],
) -> None:
    """Replace RUN/export atomically by a student of these weights, with metrics on its card."""
    copy = BertForMaskedLM(parts.engine.objective.student.model.config)
    missing, unexpected = copy.load_state_dict(weights, strict=False)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    run.check_owned()
    with fsio.folder_written_whole(run.export, room=run.fence) as folder:
        copy.save_pretrained(folder)
        parts.tokenizer.model_max_length = trained_length(copy.config)
        parts.tokenizer.save_pretrained(folder)
        card = _model_card(copy, step, parts, run, config, metrics)
        (folder / "README.md").write_text(card, encoding="utf-8")
        exported.seal(folder, step)
        exported.keep_others(run.export, folder)


def catch_up(
    parts: Parts, run: RunDir, config: Config, stop: StopFlag, log: Callable[..., None]
) -> None:
    """Finish what an earlier attempt has left: an export, a validation. Collective, at start.

    Args:
        log: called with step and metrics of the validation.
    Raises: SystemFault if the filesystem fails.
    """
    on_main(lambda: _mend_export(parts, run, config), parts.engine.world)
    if parts.progress.pending is not None:
        log(parts.progress.step, evaluate(parts, run, config, stop, parts.progress.pending))


def _mend_export(parts: Parts, run: RunDir, config: Config) -> None:
    progress = parts.progress
    due_step = progress.best_step
    if due_step is None and not config.eval.every_steps and progress.step == config.steps:
        due_step = progress.step
    there = run.export.exists()
    if progress.step == 0 or (due_step is None and not there):
        return
    best = names.checkpoint(run.path, due_step or progress.step)
    reason, step = exported.damage(run.export), exported.step_of(run.export)
    if reason is None and step is not None and step < (due_step or 0) and best.is_dir():
        reason = f"{run.export} is of step {step}, older than the best step {due_step}"
    if reason is None:
        return
    reason = reason if there else f"{run.export} is missing"
    weights, step, instead = _saved_weights(best, names.checkpoint(run.path, progress.step))
    logger.warning("%s: rewritten from the weights of step %d%s", reason, step, instead)
    _write_export(weights, step, parts, run, config, _validated(run, step))
    run.event("exported", step=step, reason=reason + instead)


def _saved_weights(best: Path, newest: Path) -> tuple[dict[str, torch.Tensor], int, str]:
    """Return the best (else newest) checkpoint's student, its step, and why it is not the best."""
    try:
        return weights_of(best), step_of(best), ""
    except DataError:
        if best == newest:
            raise
        instead = f", because no checkpoint holds the best step {step_of(best)}"
        return weights_of(newest), step_of(newest), instead


def _validated(run: RunDir, step: int) -> dict[str, float]:
    """Return the validation metrics that were logged at a step."""
    for record in fsio.read_records(run.metrics, STEP):
        if record[STEP] == step:
            return {name: value for name, value in record.items() if name.startswith("val/")}
    return {}


def _model_card(
    student: BertForMaskedLM,
    step: int,
    parts: Parts,
    run: RunDir,
    config: Config,
    metrics: Mapping[str, float],
) -> str:
    card = Card(
        name=config.track.name or run.name,
        mask_token=str(parts.tokenizer.mask_token),
        model=model_facts(student.config, num_parameters(student)),
        training=training_facts(config, step),
        data=data_facts(parts.fingerprint, parts.manifest),
        metrics=[Metric(name.removeprefix("val/"), value) for name, value in metrics.items()],
        measured_on="validation rows, during training",
        code=code_facts(describe_code()),
    )
    return model_card(card)


def save_last(parts: Parts, run: RunDir, config: Config, wandb_id: str) -> None:
    """Save unless this step has been, and wait until it is committed or has failed.

    Raises: what `save` raises.
    """
    with run.clock.during(SAVE):
        parts.saver.wait()  # all ranks know whether it has failed
        if parts.saver.step != parts.progress.step:
            save(parts, run, config, wandb_id)
        parts.saver.wait()


def save(parts: Parts, run: RunDir, config: Config, wandb_id: str) -> None:
    """Begin to save a checkpoint; without validation also export the last step.

    Raises: TrainingError if an update since the last check was not finite.
    """
    progress = parts.progress
    parts.engine.check_finite(progress.step)
    manifest = {
        **asdict(progress),
        "rows_consumed": progress.step * config.global_batch,
        "optimizer": parts.engine.state.scalars(),
        "fingerprint": parts.fingerprint,
        KEY: trained_length(parts.engine.objective.student.model.config),
        "attempt": run.attempt,
        "wandb_id": wandb_id,
        "versions": describe_code()["packages"] if parts.engine.world.is_main else {},
    }
    if not config.eval.every_steps and progress.step == config.steps:
        export(parts, run, config, {})  # first: the last checkpoint makes the run finished
    with run.clock.during(SAVE):
        parts.saver.save(manifest, keep_steps={progress.best_step or 0, before_decay(config)})
