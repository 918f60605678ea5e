"""Build the parts of a run from its configuration: shards, models, contract, engine, stream."""

from __future__ import annotations

import logging
import math
import os
import socket
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.base import fsio
from fitb.base.errors import CheckpointError, ConfigError, DataError, SystemFault
from fitb.base.world import World, job_id, lead_s_of, starts_of
from fitb.cluster.slurm import is_over, times_of
from fitb.config import Config, Geometry, ObjectiveConfig
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.cached_rows import CachedRows
from fitb.data.masking import Vocabulary, num_slots
from fitb.data.stream import RowStream
from fitb.evaluation.count import choose_rows
from fitb.model.added_tokens import extended
from fitb.model.contract import check_contract
from fitb.model.flops import TokenFlops, work_per_token
from fitb.model.load import load_model, num_parameters
from fitb.model.loaded import Loaded
from fitb.model.peaks import peak_tflops
from fitb.model.positions import take_positions, trained_length
from fitb.model.rank_agreement import digest_of_model, digest_of_tokenizer, load_alike
from fitb.objective.objective import Objective, Tap
from fitb.rundir.checkpoints import checkpoint_of, step_of
from fitb.rundir.clock import DATA_WAIT
from fitb.rundir.ledger import put_together, steps_done
from fitb.rundir.provenance import add_provenance, describe_code
from fitb.rundir.writer import RunDir, enter
from fitb.shards.cache import CacheSettings
from fitb.shards.shard_set import ShardSet
from fitb.training import checkpoint
from fitb.training.collectives import on_all, on_main
from fitb.training.defaults import resolved
from fitb.training.engine import Engine
from fitb.training.first_weights import begin_from_teacher
from fitb.training.saver import Saver
from fitb.training.stop import StopFlag
from fitb.training.zero import check_precision, deepspeed_config

logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")


@dataclass
class Progress:
    """Progress of a run, saved in each checkpoint's manifest.

    Args:
        step: optimiser updates done.
        best_loss: lowest validation loss so far; None before the first validation.
        best_step: step of that loss.
        pending: metrics of this step, whose validation is still to be done; None if it is not.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    pending: dict[str, float] | None = None

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Progress:
        """Read it from a manifest; of an earlier version it lacks what was always None there."""
        known: dict[str, Any] = {field.name: manifest.get(field.name) for field in fields(cls)}
        return cls(**known)


@dataclass(frozen=True)
class Validation:
    """This rank's share of the validation rows, in memory.

    Args:
        cached: the rows.
        rows: (n,) int64 row numbers, equally many on every rank; padded by repetition.
        num_own: number of leading rows that are this rank's; the rest is padding.
    """

    cached: CachedRows
    rows: NDArray[np.int64]
    num_own: int

    @classmethod
    def of(cls, shards: ShardSet, wanted: int, world: World) -> Validation:
        """Choose `wanted` rows (0: all), split them over the ranks, and read this rank's share.

        Raises: what ShardSet.read raises.
        """
        chosen = choose_rows(shards.num_rows, wanted)
        share = math.ceil(len(chosen) / world.size)
        own = chosen[world.rank * share : (world.rank + 1) * share]
        rows = np.resize(own if len(own) else np.zeros(1, np.int64), share)
        return cls(CachedRows.of(shards, rows), rows, len(own))


@dataclass(frozen=True)
class Parts:
    """Everything that the training loop works on.

    Args:
        engine: student, teacher and optimiser.
        saver: writes checkpoints.
        stream: batches of this rank.
        validation: validation rows of this rank; None if the run does not validate.
        vocabulary: token ids that masking needs.
        tokenizer: tokenizer of the shards.
        fingerprint: fingerprint of the shards.
        progress: step and best validation.
        token_flops: FLOPs of a training step per token.
        peak_tflops: published peak of this rank's device; None if unknown.
        manifest: manifest of the shards, for the model card.
        added_ids: ids of tokens that were added to the vocabulary, ascending.
    """

    engine: Engine
    saver: Saver
    stream: RowStream
    validation: Validation | None
    vocabulary: Vocabulary
    tokenizer: Any
    fingerprint: str
    progress: Progress
    token_flops: float
    peak_tflops: float | None
    manifest: dict[str, Any]
    added_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Read:
    """What every rank reads for itself, and what must be equal on all of them."""

    shards: ShardSet
    held_out: ShardSet | None  # the validation split, if the run validates
    tokenizer: Any
    objective: Objective
    teacher: Tap | None

    @classmethod
    def of(cls, config: Config) -> _Read:
        """Open the shards and load the models; raises what `build` raises."""
        data = config.data
        cache = CacheSettings(data.cache_dir, data.cache_gb, data.fetch_deadline_s)
        shards = ShardSet.open(data.shards, "train", cache, max_mapped=2 * data.window_shards)
        held_out = None
        if config.eval.every_steps:
            held_out = ShardSet.open(data.shards, "validation", cache)
            if held_out.manifest != shards.manifest:
                raise SystemFault(f"{shards.name} changed while it was opened; start again")
        tokenizer = load_tokenizer(shards.tokenizer_folder)
        objective, teacher = _models(config, shards, tokenizer)
        return cls(shards, held_out, tokenizer, objective, teacher)

    def digests(self, config: Config, world: World) -> dict[str, str]:
        """Hash each part, before DeepSpeed broadcasts the student of rank 0 to every rank."""
        node = replace(config, data=replace(config.data, cache_dir=None))  # may differ per node
        student, teacher = self.objective.student, self.teacher
        found = {
            "configuration": fsio.sha256_json(asdict(node)),
            f"ds_config {config.ds_config}": fsio.sha256_json(deepspeed_config(config, world)),
            f"manifest of {self.shards.name}": fsio.sha256_json(self.shards.manifest),
            f"tokenizer of {self.shards.name}": digest_of_tokenizer(self.tokenizer),
            f"student {config.model.student}": digest_of_model(
                self.objective, student.model.config
            ),
        }
        if teacher is not None:
            name = f"teacher {config.model.teacher}"
            found[name] = digest_of_model(teacher, teacher.model.config)
        return found


def open_run(config: Config, world: World, device: torch.device = _CPU) -> tuple[RunDir, Config]:
    """Create or re-enter the run folder as its owner. Collective.

    Returns: the run folder, and the configuration, with algorithm versions and all, as it has it.
    Raises: what `rundir.writer.enter` and `check_precision` raise, on every rank.
    """
    path = Path(config.run_dir)

    def begin() -> tuple[int, Config, int]:
        chosen = resolved(config, device)
        check_precision(chosen.precision)  # before the run is taken
        number, begun = enter(chosen, os.environ, is_over)
        put_together(path, number)
        return number, begun, steps_done(path)

    number, config, done = on_main(begin, world)
    on_all(lambda: check_precision(config.precision), world)
    run = RunDir(path, number, world, done)
    hosts = on_all(socket.gethostname, world)
    if world.is_main:
        job, (restart, start) = job_id(os.environ), starts_of(os.environ)
        times = times_of(job)
        about = {"job": job, "restart": restart, "start": start, **times}
        run.event("attempt", world_size=world.size, hosts=sorted(set(hosts)), **about)
    entry = {"attempt": number, "hosts": hosts, "seed": config.seed}
    on_main(lambda: add_provenance(run.path, entry | describe_code()), world)
    return run, config


def build(config: Config, run: RunDir, world: World, device: torch.device, stop: StopFlag) -> Parts:
    """Load shards and models, check the contract, and resume from the newest checkpoint, if any.

    Raises: ConfigError, DataError, ContractError, CheckpointError; SystemFault if the ranks have
        not read the same. All before the first batch.
    """
    read = load_alike(lambda: _Read.of(config), lambda found: found.digests(config, world), world)
    shards, tokenizer, objective = read.shards, read.tokenizer, read.objective
    validation = _validation(read.held_out, config, world)
    found = checkpoint.load(run.checkpoints, world)
    branched = found is None and config.branch_from is not None
    if branched:
        found = checkpoint.load_from(on_main(lambda: _branching_point(config), world), world)
    if found:
        _load_weights(found, shards.fingerprint, objective)
    elif config.model.init == "teacher":
        rows = read.held_out or shards
        begin_from_teacher(objective, read.teacher, rows, tokenizer, config, run, world)
    teacher = read.teacher if objective.asks_teacher else None
    engine = Engine(objective, teacher, config, world, device, shards.length)
    progress = Progress()
    if found:
        engine.state.load_full_tensors(found.tensors)
        engine.state.load_scalars(found.manifest["optimizer"], config.precision)
        if branched:
            progress = Progress(found.manifest["step"])
            run.event("branch", step=progress.step, checkpoint=str(found.path.absolute()))
        else:
            progress = Progress.of(found.manifest)
            run.event("resume", step=progress.step, checkpoint=found.path.name)
        logger.info("resumed at step %d from %s", progress.step, found.path)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    vocabulary = Vocabulary.of(tokenizer)
    stream = RowStream(
        shards,
        vocabulary=vocabulary,
        mask=config.mask,
        world=world,
        global_batch=config.global_batch,
        window_shards=config.data.window_shards,
        prefetch_steps=config.data.prefetch_steps,
        seed=config.seed,
        pin=device.type == "cuda",
        mask_version=config.algorithms.masks,
        waiting=lambda: run.clock.during(DATA_WAIT),
    )
    return Parts(
        engine,
        Saver(run, engine, config, progress.step, stop, lead_s_of(os.environ)),
        stream,
        validation,
        vocabulary,
        tokenizer,
        shards.fingerprint,
        progress,
        work_of(objective, teacher, config, shards.length).total,
        peak_tflops(name, config.precision),
        shards.manifest,
        tuple(entry["id"] for entry in shards.manifest["tokenizer"].get("added", ())),
    )


def _branching_point(config: Config) -> Path:
    found = checkpoint_of(config.branch_from or "")
    if found is None:
        raise ConfigError(
            f"branch_from={config.branch_from} is neither a run with checkpoints nor one of its"
            " folders checkpoints/step-NNNNNNN; correct it, or leave it out to begin at step 0"
        )
    step, decay = step_of(found), config.optim.decay_steps
    if step >= config.steps or (decay and step > config.decay_begins):
        raise ConfigError(
            f"branch_from={config.branch_from} is step {step} of steps={config.steps}, the last"
            f" {decay} of which decay; expected a step before; use --steps {step + max(1, decay)}"
        )
    return found


def work_of(objective: Objective, teacher: Tap | None, config: Config, length: int) -> TokenFlops:
    """Return the FLOPs of a training step per token, in rows of `length` tokens."""
    return work_per_token(
        _geometry(objective.student),
        _geometry(teacher) if teacher is not None else None,
        length=length,
        vocabulary=objective.student.model.config.vocab_size,
        slots_per_token=num_slots(length, config.mask) / length,
        teacher_head=config.objective.logits > 0,
    )


def _geometry(tap: Tap) -> Geometry:
    return Geometry(*(getattr(tap.model.config, key.name) for key in fields(Geometry)))


def load_models(config: Config, shards: ShardSet, tokenizer: Any) -> tuple[Loaded, Loaded | None]:
    """Load student and teacher, extend them by the added tokens, and check the contract.

    Args:
        config: run configuration.
        shards: training split.
        tokenizer: tokenizer of the shards.
    Returns: student, and teacher or None.
    Raises: ConfigError, DataError, ContractError.
    """
    model, teacher = config.model, None
    fitting: dict[str, Any] = {"tokenizer": tokenizer, "length": shards.length}
    student = load_model(model.student, dropout=model.dropout, seed=config.seed, **fitting)
    if model.teacher is not None:
        teacher = load_model(model.teacher, seed=config.seed + 1, **fitting)
        if model.positions == "teacher":
            take_positions(student.model, teacher.model)
    ours = student.model.config
    ours.trained_length = max(trained_length(ours), shards.length)
    entry = shards.manifest["tokenizer"]
    student, teacher = extended(student, entry), teacher and extended(teacher, entry)
    terms: ObjectiveConfig = config.objective
    check_contract(
        tokenizer=tokenizer,
        manifest=shards.manifest,
        student=student,
        teacher=teacher,
        needs_teacher_head=terms.logits > 0,
        attention=terms.attention > 0,
        relation_heads=(terms.relation_heads or student.model.config.num_attention_heads)
        if terms.relation
        else None,
        layer_maps=_layer_maps(config) if teacher else {},
    )
    return student, teacher


def _layer_maps(config: Config) -> dict[str, Any]:
    maps = {"objective.layer_map": config.objective.layer_map}
    if config.model.init == "teacher":
        maps["model.init_layers"] = config.model.init_layers
    return maps


def _models(config: Config, shards: ShardSet, tokenizer: Any) -> tuple[Objective, Tap | None]:
    student, teacher = load_models(config, shards, tokenizer)
    terms: ObjectiveConfig = config.objective
    if missing := ", ".join(student.missing):
        logger.warning("student %s lacks %s: randomly initialised", student.source, missing)
    if unused := student.unexpected:  # whole layers, as the contract has checked
        names = f"{unused[0]} ... {unused[-1]}"
        logger.warning("student %s leaves out %d weights: %s", student.source, len(unused), names)
    logger.info("student %s: %d parameters", student.source, num_parameters(student.model))
    if teacher is None:
        return Objective(student.model, None, terms), None
    logger.info("teacher %s: %d parameters", teacher.source, num_parameters(teacher.model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the projections
        objective = Objective(student.model, teacher.model, terms, config.algorithms.attention)
    logger.info("student layers learn from teacher layers %s", list(objective.layers))
    return objective, objective.teacher_tap(teacher.model)


def _validation(held_out: ShardSet | None, config: Config, world: World) -> Validation | None:
    """Read this rank's validation rows; if any rank cannot read a shard, every rank raises."""
    if held_out is None:
        return None
    read: list[Validation] = []
    on_all(lambda: read.append(Validation.of(held_out, config.eval.rows, world)), world)
    return read[0]


def _load_weights(found: checkpoint.Checkpoint, fingerprint: str, objective: Objective) -> None:
    """Load a checkpoint's weights into the module, before DeepSpeed partitions them."""
    trained_on = found.manifest["fingerprint"]
    if trained_on != fingerprint:
        raise DataError(
            f"{found.path} was trained on shards {trained_on[:12]}; --data.shards holds"
            f" {fingerprint[:12]}. Point it at the old shards, or choose another --run_dir"
        )
    tensors = found.tensors
    wanted = {name: p.shape for name, p in objective.named_parameters() if p.requires_grad}
    saved = {n.removeprefix("param/"): t.shape for n, t in tensors.items() if n[:6] == "param/"}
    if wanted != saved:
        differing = sorted(set(wanted.items()) ^ set(saved.items()))
        raise CheckpointError(
            f"{found.path} holds other parameters than this student: {differing[:4]} ...; go on"
            " with the fitb and transformers of provenance.json, or choose another --run_dir"
        )
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"param/{name}"])
