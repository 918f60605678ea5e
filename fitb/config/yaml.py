"""Configurations as YAML, and the keys in which two of them differ."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import yaml

from fitb.base.errors import ConfigError
from fitb.config.recipe import AlgorithmsConfig
from fitb.config.schema import Config

# Keys that may change when a run is resumed: how it is executed, not what it computes, up to
# rounding. (Algorithm versions are always those of the run, see with_algorithms_of.)
MAY_CHANGE = ("run_dir", "micro_batch", "precision", "ds_config", "data.shards",
              "data.prefetch_steps", "data.cache_dir", "data.cache_gb", "data.fetch_deadline_s",
              "speed.", "track.", "checkpoint.", "stop.", "algorithms.")  # fmt: skip


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dataclasses or dicts to a dict by dotted key."""
    items = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def with_algorithms_of(old: dict[str, Any], new: Config) -> Config:
    """Return a configuration with the algorithm versions of a run.

    Args:
        old: saved configuration of the run; versions that it lacks are 1.
        new: configuration to change.
    Raises: ConfigError if this fitb has no such algorithm or version.
    """
    known = [key.name for key in fields(AlgorithmsConfig)]
    versions = dict.fromkeys(known, 1) | dict(old.get("algorithms") or {})
    if unknown := sorted(versions.keys() - set(known)):
        raise ConfigError(
            f"the run was started with algorithms {', '.join(unknown)}; expected"
            f" {', '.join(known)}; use the fitb that started the run"
        )
    return replace(new, algorithms=AlgorithmsConfig(**versions))


def changed_keys(old: dict[str, Any], new: Config, *more_may: str) -> list[str]:
    """Return the keys that differ but must not change on a resume, as "key: old -> new".

    Args:
        old: saved configuration of the run; keys that it lacks had their default.
        new: configuration of the resume.
        more_may: further keys that may change.
    """
    before, after = flatten(old), flatten(new)
    before = {
        k: v for k, v in flatten(Config("")).items() if k in after and k not in before
    } | before
    may_change = (*MAY_CHANGE, *more_may)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == may or (may[-1] == "." and key.startswith(may)) for may in may_change)
    ]


class _Text(str):
    """A string that must be quoted, so that YAML does not read a number, date or boolean."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    pass


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def to_yaml(config: Any) -> str:
    """Render a configuration as YAML that `--config` reads back."""
    return str(yaml.dump(_plain(asdict(config)), Dumper=_Dumper, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return _Text(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
