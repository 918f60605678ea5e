"""Execution settings on this device: resolves the `speed` options that are left to fitb."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import Config
from fitb.config.schema import GPU_TOKENS
from fitb.model.attention import choose
from fitb.model.encoder import Kernels
from fitb.model.packed_linear import can_pack, pack, to_float8
from fitb.objective.objective import Objective, Tap
from fitb.training.devices import compile_threads

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GRAPHS = 64  # of one function; torch.compile fails beyond its own limit of 8


@dataclass(frozen=True)
class Execution:
    """The `speed` settings, all resolved.

    Args:
        dtype: compute dtype of the student, and dtype of the teacher's weights.
        kernels: attention and padding of both models.
        compile: whether teacher, student and losses are compiled with torch.compile.
        pack_teacher: whether the teacher's matmuls use packed oneDNN weights.
        fp8_teacher: whether the teacher's matrices are quantised to fp8.
        teacher_rows: rows per teacher forward.
        cuda_graphs: whether compiled models replay their launches as CUDA graphs.
        deterministic: whether only kernels are used whose results do not vary between runs.
    """

    dtype: torch.dtype
    kernels: Kernels
    compile: bool
    pack_teacher: bool
    fp8_teacher: bool
    teacher_rows: int
    cuda_graphs: bool = False
    deterministic: bool = False

    @classmethod
    def of(
        cls,
        config: Config,
        world: World,
        device: torch.device,
        length: int,
        zero_stage: int,
    ) -> Execution:
        """Resolve the settings of a run.

        Args:
            config: run configuration.
            world: rank and world size of this process.
            device: device of this process.
            length: tokens per row.
            zero_stage: ZeRO stage. Stage 3 gathers weights inside the forward pass, which breaks
                the graph of a compiled module and leaves no whole weights to pad.
        Raises: ConfigError for settings that exclude each other.
        """
        speed, dtype = config.speed, DTYPES[config.precision]
        if zero_stage == 3 and (speed.compile or speed.pad):
            raise ConfigError(
                "speed.compile and speed.pad do not work under ZeRO 3; leave them out, or use"
                " --ds_config zero2"
            )
        whole_on_gpu = device.type == "cuda" and zero_stage != 3
        if speed.cuda_graphs and (not whole_on_gpu or speed.compile is False):
            raise ConfigError(
                f"speed.cuda_graphs on a {device.type} device, with ZeRO {zero_stage} and"
                f" speed.compile={speed.compile}; expected a GPU, ZeRO 1 or 2 and compiled models;"
                " leave it out"
            )
        pad = whole_on_gpu if speed.pad is None else speed.pad
        return cls(
            dtype=dtype,
            kernels=Kernels(attention=choose(speed.attention, device, dtype, length), pad=pad),
            compile=whole_on_gpu if speed.compile is None else speed.compile,
            pack_teacher=speed.pack_teacher and not pad and can_pack(device, dtype),
            fp8_teacher=config.model.teacher_precision == "fp8",
            teacher_rows=_teacher_rows(config, world, device, length),
            cuda_graphs=speed.cuda_graphs,
            deterministic=speed.deterministic,
        )

    def prepare(self, objective: Objective, teacher: Tap | None, device: torch.device) -> None:
        """Apply the settings to both models, before DeepSpeed; move the teacher to `device`.

        Raises: SystemFault if fp8 was requested and the device has no fp8 matmuls.
        """
        from torch._inductor import config as inductor

        if self.deterministic:
            torch.use_deterministic_algorithms(True)
            inductor.deterministic = True  # chooses no kernel by its time
        objective.student.kernels = self.kernels
        if self.compile:
            # One code object serves teacher and student, and each size of batch is a graph.
            torch._dynamo.config.recompile_limit = _GRAPHS
            if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
                inductor.compile_threads = compile_threads(os.environ)
            objective.compile(self.cuda_graphs)
        if teacher is None:
            return
        teacher.to(device=device, dtype=self.dtype)
        teacher.kernels = self.kernels
        if self.fp8_teacher:
            to_float8(teacher.model, device)
        if self.pack_teacher:  # torch.compile does not support packed weights, and gains little
            pack(teacher.model)
        elif self.compile:
            teacher.compile(self.cuda_graphs)


def _teacher_rows(config: Config, world: World, device: torch.device, length: int) -> int:
    """Return the rows per teacher forward: a divisor of the micro-batches of a step, times rows."""
    size, grad_accum = config.rows_per_pass, config.grad_accum(world.size)
    most = config.speed.teacher_rows
    if most is None:
        most = GPU_TOKENS // length if device.type == "cuda" else size
    fits = [size * n for n in range(1, grad_accum + 1) if grad_accum % n == 0]
    return max(rows for rows in fits if rows <= max(most, size))
