"""Dotted keys of configuration dataclasses: types, choices, and names in other trainers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Names in the Hugging Face Trainer and its example scripts: fitb's key, and what differs.
OF_OTHERS = {
    "adam_beta1": ("optim.betas", "both in a list"),
    "adam_beta2": ("optim.betas", "both in a list"),
    "adam_epsilon": ("optim.eps", ""),
    "attn_implementation": ("speed.attention", ""),
    "batch_size": ("global_batch", "rows of a step over all processes"),
    "bf16": ("precision", "as in --precision bf16"),
    "data_seed": ("seed", ""),
    "dataset_name": ("data.shards", "that `fitb prepare` has written"),
    "deepspeed": ("ds_config", ""),
    "early_stopping_patience": ("eval.patience", ""),
    "eval_steps": ("eval.every_steps", ""),
    "eval_strategy": ("eval.every_steps", "0 turns it off"),
    "fp16": ("precision", "as in --precision fp16"),
    "gradient_accumulation_steps": (
        "global_batch",
        "rows of a step over all processes: accumulation follows from it and micro_batch",
    ),
    "learning_rate": ("optim.lr", ""),
    "logging_dir": ("run_dir", ""),
    "logging_steps": ("track.every_steps", ""),
    "lr_scheduler_type": ("optim.schedule", ""),
    "max_grad_norm": ("optim.clip_norm", ""),
    "max_steps": ("steps", ""),
    "max_train_steps": ("steps", ""),
    "mlm_probability": ("mask.fraction", ""),
    "model_name_or_path": ("model.student", "beside model.teacher"),
    "num_train_epochs": ("steps", "optimiser updates: epochs x rows / global_batch"),
    "output_dir": ("run_dir", ""),
    "per_device_eval_batch_size": ("micro_batch", "rows of a forward pass at most"),
    "per_device_train_batch_size": (
        "micro_batch",
        "rows of a forward pass at most: a step has global_batch rows over all processes",
    ),
    "report_to": ("track.wandb", ""),
    "resume_from_checkpoint": ("run_dir", "an existing run is resumed"),
    "run_name": ("track.name", ""),
    "save_steps": ("checkpoint.every_steps", ""),
    "save_total_limit": ("checkpoint.keep_last", ""),
    "student_model": ("model.student", ""),
    "teacher_model": ("model.teacher", ""),
    "temperature": ("objective.temperature", ""),
    "torch_compile": ("speed.compile", ""),
    "train_batch_size": ("global_batch", "rows of a step over all processes"),
    "warmup_ratio": ("optim.warmup_steps", "in steps"),
    "warmup_steps": ("optim.warmup_steps", ""),
    "weight_decay": ("optim.weight_decay", ""),
}


def hints(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a dataclass and of nested dataclasses, with their types.

    A union of a dataclass and other types is yielded itself, besides the keys of the dataclass.

    Args:
        kind: the dataclass.
        prefix: prefix of the keys.
    """
    for name, hint in get_type_hints(kind).items():
        key, section = f"{prefix}{name}", section_of(hint)
        if section is not hint:
            yield key, hint
        if section and get_origin(hint) is not list:
            yield from hints(section, f"{key}.")


def hint_of(kind: type[Any], key: str) -> Any:
    """Return the type of a dotted key; None if the dataclass has no such key."""
    name, _, rest = key.partition(".")
    hint = get_type_hints(kind).get(name)
    if not rest or hint is None:
        return hint
    if get_origin(hint) is dict:
        return get_args(hint)[1]
    section = section_of(hint)
    return hint_of(section, rest) if section and get_origin(hint) is not list else None


def section_of(hint: Any) -> Any:
    """Return the dataclass in a type, a union or a list; None if there is none."""
    return next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)


def choices(hint: Any) -> list[str]:
    """Return the literal values that a type allows; empty if it has none."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    if _is_union(hint):
        found = [word for part in get_args(hint) for word in choices(part)]
        return found + ["null"] * (bool(found) and NoneType in get_args(hint))
    return []


def type_name(hint: Any) -> str:
    """Return the name of a type for users: float | null, fp16 | bf16 | fp32, list[int]."""
    if get_origin(hint) is Literal:
        return " | ".join(choices(hint))
    if _is_union(hint):
        return " | ".join(type_name(part) for part in get_args(hint))
    if get_origin(hint) in (list, tuple, dict):
        parts = ", ".join(type_name(part) for part in get_args(hint))
        return (
            f"[{parts}]" if get_origin(hint) is tuple else f"{get_origin(hint).__name__}[{parts}]"
        )
    return "null" if hint is NoneType else hint.__name__.lower()


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)
