"""Reading and checking DeepSpeed configuration files, without importing DeepSpeed.

"auto" leaves a value to fitb, as it does with the Hugging Face Trainer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError
from fitb.config.parser import resolve_resource

OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)
_STAGES = (1, 2, 3)
_OBJECTS = ("zero_optimization", "fp16", "bf16")
_RENAMED = {  # deprecated keys of zero_optimization, which DeepSpeed resolves too late for fitb
    "cpu_offload": 'offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'offload_param": {"device": "cpu"}',
    "cpu_offload_params": 'offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": 'offload_optimizer": {"pin_memory": true}',
}


def read_ds_config(name: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration, without the keys that are "auto".

    Args:
        name: path, or name of a file in ds_configs/.
    Raises: ConfigError if the file is missing or invalid, or sets a key that fitb owns.
    """
    path = resolve_resource(name, "fitb.ds_configs", ".json")
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path} is not a DeepSpeed configuration; expected a JSON object")
    found = {key: value for key, value in read.items() if value != "auto"}
    for key in _OBJECTS:
        if not isinstance(found.get(key, {}), dict):
            raise ConfigError(f"{path}: {key}={found[key]!r}; expected a JSON object")
    _check_owned(path, found)
    _check_zero(path, found.get("zero_optimization", {}))
    return found


def _check_owned(path: Path, found: dict[str, Any]) -> None:
    twice = [key for key in OWNED if key in found]
    for key in ("fp16", "bf16"):
        twice += [f"{key}.enabled"] if found.get(key, {}).get("enabled", "auto") != "auto" else []
    if "compute_grad_norm" in found.get("zero_optimization", {}):
        twice.append("zero_optimization.compute_grad_norm")
    if twice:
        raise ConfigError(
            f"{path} sets {', '.join(twice)}, which fitb owns; remove it there and use"
            " --global_batch, --micro_batch, --precision and --optim.* instead"
        )


def _check_zero(path: Path, zero: dict[str, Any]) -> None:
    for key, new in _RENAMED.items():
        if zero.get(key):
            raise ConfigError(f'{path}: zero_optimization.{key} is deprecated; use "{new}')
    stage = zero.get("stage")
    if type(stage) is not int or stage not in _STAGES:
        raise ConfigError(f"{path}: zero_optimization.stage={stage!r}; expected 1, 2 or 3")
