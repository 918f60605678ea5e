"""A run's configuration, without loading a model: flags, DeepSpeed's file, shards, room needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, FitbError
from fitb.config import Config, Geometry
from fitb.config.launcher import LauncherArguments
from fitb.model.flops import checkpoint_bytes, trained_parameters
from fitb.tools.doctor.check import Check, of_sentence
from fitb.tools.doctor.job_request import JobRequest

RUN_DIR = "runs/fitb-distill"  # of slurm/distill.sh, where nobody says
_VOCABULARY, _LENGTH = 30_522, 128  # BERT's, and that of `fitb prepare`
_BERT_BASE = Geometry(12, 768, 3072, 12)
_EXPORT_BYTES = 4  # of a parameter
_LOGS_BYTES = 200e6  # of metrics, logs and W&B's segments


def read(
    flags: Sequence[str], launcher: LauncherArguments | None = None
) -> tuple[Config | None, list[Check]]:
    """Parse the flags of `fitb train`; None where there are none or they are wrong.

    The file of DeepSpeed is looked at as far as it goes without DeepSpeed.

    Args:
        launcher: that has taken the flags of the doctor itself.
    """
    name = "configuration"
    if not flags:
        found = "none was given: the flags of `fitb train` may follow"
        return None, [Check("skipped", name, found)]
    try:
        from fitb.config.ds_config import read_ds_config
        from fitb.config.parser import parse
    except ImportError as error:
        return None, [Check("skipped", name, f"cannot be read: {error}; see packages")]
    try:
        config = parse(Config, "fitb doctor", ["--run_dir", RUN_DIR, *flags], launcher=launcher)
    except FitbError as error:
        return None, [of_sentence(name, str(error))]
    checks = [Check("ok", name, f"valid; {config.steps} steps of {config.global_batch} rows")]
    try:
        stage = read_ds_config(config.ds_config)["zero_optimization"]["stage"]
    except ConfigError as error:
        return config, [*checks, Check("bad", "ds_config", str(error), "--ds_config zero2")]
    found = f"{Path(config.ds_config).name}: ZeRO {stage}"
    return config, [*checks, Check("ok", "ds_config", found)]


def batch(config: Config, request: JobRequest) -> Check:
    """Say whether the global batch can be cut for the processes of the job."""
    processes = request.nodes * request.tasks
    try:
        number = config.grad_accum(processes)
    except ConfigError as error:
        return of_sentence("global_batch", str(error))
    found = f"{config.global_batch} rows over {processes} processes, {number} micro-batches each"
    return Check("ok", "global_batch", found)


def manifest_of(config: Config) -> dict[str, Any]:
    """Return the manifest of a local shard set; {} for any other, and where it cannot be read."""
    try:
        return dict(json.loads((Path(config.data.shards) / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError):  # `shards` says so
        return {}


def shards(where: str, needs_validation: bool) -> Check:
    """Say whether the files of a shard set are there in their sizes.

    Args:
        where: data.shards.
        needs_validation: whether the run evaluates.
    """
    try:
        from fitb.shards.manifest import check_files, read_manifest
        from fitb.shards.remote import is_remote
    except ImportError as error:
        return Check("skipped", "shards", f"cannot be looked at: {error}; see packages")
    if is_remote(where):
        return Check("skipped", "shards", "a URL: looked at when the models are")
    try:
        manifest = read_manifest(Path(where))
        check_files(Path(where))
    except FitbError as error:
        return of_sentence("shards", str(error), f"fitb prepare --out {where} ...")
    splits = ["train", *(["validation"] if needs_validation else [])]
    absent = [split for split in splits if split not in manifest["splits"]]
    if absent:
        found = f"{where} has no split {' and no '.join(absent)}"
        return Check("bad", "shards", found, f"fitb prepare --out {where} ...")
    size = sum(entry["bytes"] for entry in manifest["shards"]) / 1e9
    found = f"{len(manifest['shards'])} files of {size:.2f} GB in their sizes, rows of"
    found += f" {manifest['length']}, fingerprint {manifest['fingerprint'][:12]}"
    return Check("ok", "shards", found)


def geometry_of(source: Geometry | str | None) -> Geometry | None:
    """Return the sizes of a model: as given, or of a folder's config.json; None if unknown."""
    if not isinstance(source, str):
        return source
    try:
        sizes = json.loads((Path(source) / "config.json").read_text())
        return Geometry(*(int(sizes[key]) for key in Geometry.__dataclass_fields__))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def need(config: Config | None, manifest: dict[str, Any]) -> tuple[float, str]:
    """Return the bytes that a run writes, and what they are.

    The checkpoints kept, the best and the one being written, two exports of the student (one of
    them being written), logs. Unknown sizes are those of TinyBERT-4 under BERT-base.
    """
    settings = config or Config("")
    student = geometry_of(settings.model.student) or Geometry()
    teacher = geometry_of(settings.model.teacher) or _BERT_BASE
    parameters = trained_parameters(
        student,
        None if config and config.model.teacher is None else teacher,
        vocabulary=manifest.get("tokenizer", {}).get("vocab_size", _VOCABULARY),
        length=manifest.get("length", _LENGTH),
    )
    number = settings.checkpoint.keep_last + 2
    one = checkpoint_bytes(parameters)
    why = f"{number} checkpoints of {one / 1e6:.0f} MB, exports and logs"
    return number * one + 2 * _EXPORT_BYTES * parameters + _LOGS_BYTES, why


def hub_names(config: Config | None) -> tuple[str, ...]:
    """Return the models that are no folders here."""
    sources = [config.model.teacher, config.model.student] if config else []
    return tuple(s for s in sources if isinstance(s, str) and not Path(s).is_dir())
