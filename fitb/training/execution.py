"""How teacher and student are executed on this device: what `speed` leaves open is decided here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import Config
from fitb.model.attention import choose
from fitb.model.encoder import Kernels
from fitb.model.frozen import can_pack, pack, to_float8
from fitb.objective.objective import Objective, Tap

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TEACHER_TOKENS = 32_768  # of one forward pass on a GPU: enough to fill it, 1 GB of features


@dataclass(frozen=True)
class Execution:
    """The settings of `speed`, each of them decided.

    Args:
        dtype: of the student's arithmetic and of the teacher.
        kernels: of both forward passes.
        compile: whether teacher, student and losses are compiled.
        pack_teacher: whether the teacher's matrices go through oneDNN.
        fp8_teacher: whether the teacher's matrices are rounded to 8 bits.
        teacher_rows: rows of one forward pass of the teacher.
    """

    dtype: torch.dtype
    kernels: Kernels
    compile: bool
    pack_teacher: bool
    fp8_teacher: bool
    teacher_rows: int

    @classmethod
    def of(
        cls, config: Config, world: World, device: torch.device, length: int, zero_stage: int
    ) -> Execution:
        """Decide.

        Args:
            length: tokens in a row.
            zero_stage: of DeepSpeed. Stage 3 gathers a module's weights when it is called, in the
                middle of what would be one graph, and there is nothing to pad before.
        Raises: ConfigError where settings exclude each other.
        """
        speed, dtype = config.speed, DTYPES[config.precision]
        if zero_stage == 3 and (speed.compile or speed.pad):
            raise ConfigError(
                "speed.compile and speed.pad do not work under ZeRO 3; leave them out, or use"
                " --ds_config zero2"
            )
        whole_on_gpu = device.type == "cuda" and zero_stage != 3
        pad = whole_on_gpu if speed.pad is None else speed.pad
        return cls(
            dtype=dtype,
            kernels=Kernels(
                attention=choose(speed.attention, device, dtype, length),
                pad=pad,
            ),
            compile=whole_on_gpu if speed.compile is None else speed.compile,
            pack_teacher=speed.pack_teacher and not pad and can_pack(device, dtype),
            fp8_teacher=config.model.teacher_precision == "fp8",
            teacher_rows=_teacher_rows(config, world, device, length),
        )

    def prepare(self, objective: Objective, teacher: Tap | None, device: torch.device) -> None:
        """Bring both into this form, the teacher to its device too, before DeepSpeed comes.

        Raises: as to_float8 does, where 8-bit products are asked for.
        """
        objective.student.kernels = self.kernels
        if self.compile:
            objective.compile()
        if teacher is None:
            return
        teacher.to(device=device, dtype=self.dtype)
        teacher.kernels = self.kernels
        if self.fp8_teacher:
            to_float8(teacher.model, device)
        if self.pack_teacher:  # the compiler does not take oneDNN's maps, and has little to add
            pack(teacher.model)
        elif self.compile:
            teacher.compile()


def _teacher_rows(config: Config, world: World, device: torch.device, length: int) -> int:
    """As many micro-batches as may be asked about at once, dividing those of a step."""
    size, grad_accum = config.micro_batch, config.grad_accum(world.size)
    most = config.speed.teacher_rows
    if most is None:
        most = _TEACHER_TOKENS // length if device.type == "cuda" else size
    fits = [size * n for n in range(1, grad_accum + 1) if grad_accum % n == 0]
    return max(rows for rows in fits if rows <= max(most, size))
