"""A configuration written down, compared with another one, and rendered as YAML."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import yaml

from fitb.base.errors import ConfigError
from fitb.config.schema import AlgorithmsConfig, Config

# What may differ between two attempts of one run: how it is executed, not what it computes, but to
# rounding. (The algorithm versions that count are the run's own: with_algorithms_of.)
MAY_CHANGE = ("run_dir", "micro_batch", "precision", "ds_config", "data.shards",
              "data.prefetch_steps", "data.cache_dir", "data.cache_gb", "data.fetch_deadline_s",
              "speed.", "track.", "checkpoint.", "stop.", "algorithms.")  # fmt: skip


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value for nested dataclasses or dicts."""
    items = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def with_algorithms_of(old: dict[str, Any], new: Config) -> Config:
    """Return a configuration with the algorithm versions of a run's saved one.

    Versions that the saved one does not name are 1: it is older than they are.

    Raises: ConfigError where this fitb has no such algorithm or version.
    """
    known = [key.name for key in fields(AlgorithmsConfig)]
    versions = dict.fromkeys(known, 1) | dict(old.get("algorithms") or {})
    if unknown := sorted(versions.keys() - set(known)):
        raise ConfigError(
            f"the run was begun with algorithms {', '.join(unknown)}, which this fitb lacks;"
            f" it has {', '.join(known)}; use the fitb that began the run"
        )
    return replace(new, algorithms=AlgorithmsConfig(**versions))


def changed_keys(old: dict[str, Any], new: Config) -> list[str]:
    """Keys that a resumed run may not change but that differ, as 'key: old -> new'.

    A key that the old configuration did not know yet had its default.
    """
    before, after = flatten(old), flatten(new)
    before = {
        k: v for k, v in flatten(Config("")).items() if k in after and k not in before
    } | before
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == may or (may[-1] == "." and key.startswith(may)) for may in MAY_CHANGE)
    ]


class _Text(str):
    """A string that YAML must not take for a number, a date or a switch."""


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
