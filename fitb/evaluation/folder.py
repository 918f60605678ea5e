"""Evaluate many models into a folder, one file each; tasks share them and skip finished ones.

torch is imported only if a model has to be evaluated, so that a login node can print the table.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fitb.base import fsio
from fitb.base.errors import ConfigError
from fitb.evaluation.data_parallel import joined
from fitb.evaluation.evaluate_config import EvaluateConfig, masks_of
from fitb.model.positions import known_length
from fitb.rundir.checkpoints import checkpoint_of
from fitb.shards.shard_set import ShardSet

_FORMAT = 2  # format of the files; 1 had intervals over rows, and other span lengths
_NO_PART = ("model", "models", "out", "share", "json")  # settings that no result depends on


def evaluate_all(config: EvaluateConfig, env: Mapping[str, str]) -> dict[str, Any]:
    """Evaluate this task's share of the models, and return the results of all finished ones.

    The file name of a result is a hash of all that it depends on: the model's files, the settings
    and the rows. Files are written atomically.

    Args:
        config: configuration with `out`, and `model` or `models`.
        env: environment variables.
    Returns: `models`, results by model, and `missing`, models without a result; empty on ranks
        other than 0.
    Raises: ConfigError if the share is invalid or a pattern matches nothing; see also `evaluate`.
    """
    models = expand(config.models or [str(config.model)])
    begin, step = share_of(config.share, env)
    folder = Path(str(config.out))
    with joined(env) as ranks:
        names = ranks.given(_names(config, models))
        todo = [
            model for model in models[begin::step] if not (folder / f"{names[model]}.json").exists()
        ]
        for model in ranks.given(todo):
            from fitb.evaluation.evaluate import evaluate

            result = evaluate(replace(config, model=model, models=[]), ranks)
            if ranks.world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                fsio.write_json(folder / f"{names[model]}.json", {"model": model, **result})
        if not ranks.world.is_main:
            return {}
    paths = {model: folder / f"{name}.json" for model, name in names.items()}
    found = {model: fsio.read_json(path) for model, path in paths.items() if path.exists()}
    return {"models": found, "missing": [model for model in models if model not in found]}


def expand(patterns: Sequence[str]) -> list[str]:
    """Expand glob patterns to folders; return each model once, in order.

    Args:
        patterns: folders, hub names or glob patterns.
    Raises: ConfigError if a pattern matches nothing.
    """
    models: dict[str, None] = {}
    for pattern in patterns:
        is_glob = re.search(r"[*?\[]", pattern) and not Path(pattern).is_dir()
        found = sorted(p for p in glob.glob(pattern) if Path(p).is_dir()) if is_glob else [pattern]
        if not found:
            raise ConfigError(f"models {pattern!r} matches no folder; give paths that exist")
        models.update(dict.fromkeys(found))
    return list(models)


def share_of(share: str | None, env: Mapping[str, str]) -> tuple[int, int]:
    """Return the index of this task's first model, and the step to its next one.

    Args:
        share: I/N; None takes the share of the Slurm array task, or all models outside an array.
        env: environment with SLURM_ARRAY_TASK_ID, _MIN, _MAX, _COUNT and _STEP.
    Raises: ConfigError if `share` is invalid, or the array's indices are not evenly spaced.
    """
    if share is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", share)
        if not match or not int(match[1]) < int(match[2]):
            raise ConfigError(f"share={share}; expected I/N with I from 0 to N - 1, such as 0/10")
        return int(match[1]), int(match[2])
    if "SLURM_ARRAY_TASK_ID" not in env:
        return 0, 1
    place, least, most, count = (
        int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
    )
    step = int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
    if (most - least) // step + 1 != count:
        raise ConfigError(
            f"an array of {count} tasks from {least} to {most} in steps of {step} has gaps; submit"
            " --array=0-N, finished models are skipped"
        )
    return (place - least) // step, count


def _names(config: EvaluateConfig, models: Sequence[str]) -> dict[str, str]:
    """Return the file name of each model's result, without suffix."""
    settings = {key: value for key, value in asdict(config).items() if key not in _NO_PART}
    settings.pop("mask_version")
    opened = {
        name: ShardSet.open(where, config.split) for name, where in config.named_sets().items()
    }
    sets = {name: shards.fingerprint for name, shards in opened.items()}
    sources = {role: source for role, source in config.sources().items() if role != "model"}
    others = {role: _stamp(source) for role, source in sources.items()}
    longest = max(shards.length for shards in opened.values())
    names = {}
    for model in models:
        folder = checkpoint_of(model) or Path(model)
        parts = [part for part in folder.absolute().parts[-3:] if part != "checkpoints"]
        label = re.sub(r"[^\w.-]+", "-", "-".join(parts[-2:] if folder.is_dir() else [model]))
        about = [_FORMAT, settings, sets, others, str(folder), _stamp(model)]
        if (masks := config.mask_version or masks_of(model)) > 2:  # the only one that there was
            about.append({"mask_version": masks})
        known = [known_length(source) for source in (model, *sources.values())]
        if any(length is not None and length < longest for length in known):
            about.append(known)  # earlier versions read such rows without windows
        key = fsio.sha256_json(about)
        names[model] = f"{label}-{key[:12]}"
    return names


def _stamp(source: str) -> list[list[Any]]:
    """Return name, size and mtime of the files of a local model; nothing for a hub name."""
    folder = checkpoint_of(source) or Path(source)
    files = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".json", ".bin"))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def check_array(config: EvaluateConfig, number: int) -> None:
    """Raise ConfigError if an array of `number` tasks has nothing to share."""
    if number < 1 or (number > 1 and not config.models):
        raise ConfigError(
            f"--array {number}; at least 1, and more than 1 only with --models and --out"
        )
