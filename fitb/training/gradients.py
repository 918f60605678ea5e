"""Accumulation of gradients over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


class GradientSum:
    """Gradients summed in fp32 over micro-batches, and rounded once at the end.

    A 16-bit sum would lose small gradients beside large ones. Buffers are made once, and each
    operation is one kernel for all parameters.

    Args:
        parameters: what is trained; each has a gradient in every micro-batch, or in none.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[torch.Tensor] = []
        self._addends: list[torch.Tensor] = []  # 16-bit gradients in fp32

    @contextmanager
    def of_micro_batches(self, number: int) -> Iterator[Callable[[], None]]:
        """Yield a function to call after each backward pass; on exit `grad` holds the sum.

        Args:
            number: micro-batches of the step. Gradients of one alone are not copied; of several
                none is kept, as the memory of CUDA graphs is used again.
        """
        used = list[torch.nn.Parameter]()
        latest = list[torch.Tensor]()
        num_added = 0

        def add() -> None:
            nonlocal used, latest, num_added
            used = [parameter for parameter in self._parameters if parameter.grad is not None]
            latest = [p.grad for p in used if p.grad is not None]
            for parameter in used:
                parameter.grad = None
            num_added += 1
            if number == 1 or not latest:
                return
            self._sums = self._sums or _in_fp32(latest)
            if num_added == 1:
                torch._foreach_copy_(self._sums, latest)
            else:
                torch._foreach_add_(self._sums, self._widened(latest))

        yield add
        if number > 1 and latest:
            torch._foreach_copy_(latest, self._sums)
        for parameter, gradient in zip(used, latest, strict=True):
            parameter.grad = gradient

    def _widened(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        if all(gradient.dtype == torch.float32 for gradient in gradients):
            return gradients
        self._addends = self._addends or _in_fp32(gradients)
        torch._foreach_copy_(self._addends, gradients)
        return self._addends


def _in_fp32(like: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(each, dtype=torch.float32) for each in like]
