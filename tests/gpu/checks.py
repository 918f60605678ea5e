"""The checks of training on one GPU, in order: those that tell most in least time come first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import run_checks as runs
import speed_checks as speeds
import step_checks as steps
import torch
from setting import Setting


@dataclass(frozen=True)
class Check:
    """A check, and the seconds after which it has failed."""

    run: Callable[[Setting], dict[str, Any]]
    deadline_s: float


def device(at: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if not at.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability()),
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    at.require("torch multiplies in fp32", not found.get("tf32", False))
    return found


CHECKS = {
    "device": Check(device, 30),
    "first_step": Check(steps.first_step, 60),
    "waits": Check(steps.waits, 45),
    "compiled": Check(steps.compiled, 180),
    "profile": Check(speeds.profile, 90),
    "speed": Check(speeds.speed, 240),
    "attention_term": Check(steps.attention_term, 30),
    "fp8": Check(steps.fp8, 40),
    "matrix": Check(steps.matrix, 60),
    "overflow": Check(steps.overflow, 30),
    "collectives": Check(steps.collectives, 20),
    "repeated": Check(steps.repeated, 60),
    "signalled": Check(runs.signalled, 180),
    "train": Check(runs.train, 240),
}
