"""Checks of a run's configuration without loading a model: flags, DeepSpeed's file, shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, FitbError
from fitb.base.fsio import read_json
from fitb.config import Config, Geometry
from fitb.config.launcher import LauncherArguments
from fitb.model.flops import BERT_BASE, VOCABULARY, checkpoint_bytes, trained_parameters
from fitb.tools.doctor.check import Check, of_sentence
from fitb.tools.doctor.job_request import JobRequest

RUN_DIR = "runs/fitb-distill"  # default of slurm/distill.sh
_LENGTH = 128  # default row length of `fitb prepare`
_EXPORT_BYTES = 4  # per parameter
_LOGS_BYTES = 200e6  # metrics, logs and W&B's segments


def read(
    flags: Sequence[str], launcher: LauncherArguments | None = None
) -> tuple[Config | None, list[Check]]:
    """Parse the flags of `fitb train`; the configuration is None if there are none or bad ones.

    DeepSpeed's file is checked as far as possible without DeepSpeed.

    Args:
        launcher: parser that has taken the doctor's own flags.
    """
    name = "configuration"
    if not flags:
        return None, [Check("skipped", name, "none given; add the flags of `fitb train`")]
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
    """Check that the global batch can be divided among the job's processes."""
    processes = request.nodes * request.tasks
    try:
        number = config.grad_accum(processes)
    except ConfigError as error:
        return of_sentence("global_batch", str(error))
    found = f"{config.global_batch} rows over {processes} processes, {number} micro-batches each"
    return Check("ok", "global_batch", found)


def manifest_of(config: Config) -> dict[str, Any]:
    """Return the manifest of a local shard set; {} if it is remote or unreadable."""
    try:
        return dict(read_json(Path(config.data.shards) / "manifest.json"))
    except (OSError, ValueError, TypeError):  # `shards` reports it
        return {}


def shards(where: str, needs_validation: bool) -> Check:
    """Check that the files of a shard set exist with their sizes in the manifest."""
    try:
        from fitb.shards.manifest import check_files, read_manifest
        from fitb.shards.remote import is_remote
    except ImportError as error:
        return Check("skipped", "shards", f"cannot be checked: {error}; see packages")
    if is_remote(where):
        return Check("skipped", "shards", "a URL: checked together with the models")
    fix = f"fitb prepare --out {where} ..."
    try:
        manifest = read_manifest(Path(where))
        check_files(Path(where))
    except FitbError as error:
        return of_sentence("shards", str(error), fix)
    wanted = ("train", "validation") if needs_validation else ("train",)
    absent = [split for split in wanted if split not in manifest["splits"]]
    if absent:
        return Check("bad", "shards", f"{where} has no split {', '.join(absent)}", fix)
    size = sum(entry["bytes"] for entry in manifest["shards"]) / 1e9
    found = f"{len(manifest['shards'])} files, {size:.2f} GB, rows of {manifest['length']} tokens"
    return Check("ok", "shards", f"{found}, fingerprint {manifest['fingerprint'][:12]}")


def geometry_of(source: Geometry | str | None) -> Geometry | None:
    """Return the geometry as given, or that of a folder's config.json; None if unknown."""
    if not isinstance(source, str):
        return source
    try:
        sizes = read_json(Path(source) / "config.json")
        return Geometry(*(int(sizes[key]) for key in Geometry.__dataclass_fields__))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def need(config: Config | None, manifest: dict[str, Any]) -> tuple[float, str]:
    """Return the bytes that a run needs on disk, and what for.

    These are the checkpoints kept, the best one and one being written, two exports (one being
    written), and logs. Unknown geometries count as TinyBERT-4 distilled from BERT-base.
    """
    settings = config or Config("")
    student = geometry_of(settings.model.student) or Geometry()
    teacher = geometry_of(settings.model.teacher) or BERT_BASE
    parameters = trained_parameters(
        student,
        None if config and config.model.teacher is None else teacher,
        vocabulary=manifest.get("tokenizer", {}).get("vocab_size", VOCABULARY),
        length=manifest.get("length", _LENGTH),
    )
    number = settings.checkpoint.keep_last + 2
    one = checkpoint_bytes(parameters)
    why = f"{number} checkpoints of {one / 1e6:.0f} MB, exports and logs"
    return number * one + 2 * _EXPORT_BYTES * parameters + _LOGS_BYTES, why


def hub_names(config: Config | None) -> tuple[str, ...]:
    """Return the model sources that are not local folders: names on the Hugging Face hub."""
    sources = [config.model.teacher, config.model.student] if config else []
    return tuple(s for s in sources if isinstance(s, str) and not Path(s).is_dir())
