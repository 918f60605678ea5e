"""Time breakdown of a training step, from hooks on the engine that trains.

Module hooks and wrapped calls record a timestamp whenever another part begins. The boundary inside
the backward pass, between losses and student, is an identity node of the autograd graph.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fitb.training.engine import Engine

_OF_DEEPSPEED = (
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class Timeline:
    """Exclusive time of nested parts, in seconds: time in an inner part is not the outer one's.

    Args:
        device: where the step runs; on a GPU timestamps are CUDA events, read only at the end.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._names = ["other"]
        self._borders: list[tuple[str, Any]] = []
        self._begin = self._now()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _border(self) -> None:
        self._borders.append((self._names[-1], self._now()))

    def enter(self, name: str) -> None:
        self._border()
        self._names.append(name)

    def leave(self) -> None:
        self._border()
        self._names.pop()

    def switch(self, name: str) -> None:
        """Rename the current part from now on."""
        self._border()
        self._names[-1] = name

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def seconds(self) -> dict[str, float]:
        """Stop and return the exclusive seconds of each part."""
        self._border()
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        before = self._begin
        for name, border in self._borders:
            totals[name] += before.elapsed_time(border) / 1e3 if self._on_gpu else border - before
            before = border
        return dict(totals)


class _Border(torch.autograd.Function):
    """Identity whose backward pass calls `reached` once the gradients of all tensors are there."""

    @staticmethod
    def forward(ctx: Any, reached: Callable[[], None], *tensors: torch.Tensor) -> Any:
        ctx.reached = reached
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.reached()
        return None, *gradients


@contextlib.contextmanager
def watched(engine: Engine, timeline: Timeline) -> Iterator[None]:
    """Record the parts of every training step that runs in this context."""
    from deepspeed.comm import comm

    deepspeed = engine._engine
    with contextlib.ExitStack() as stack:
        stack.enter_context(_timed_calls(dist, ("all_reduce",), timeline, "communication"))
        stack.enter_context(_timed_calls(comm.cdb, _OF_DEEPSPEED, timeline, "communication"))
        stack.enter_context(_timed_calls(deepspeed, ("backward",), timeline, "losses"))
        stack.enter_context(_timed_calls(deepspeed, ("step",), timeline, "optimiser"))
        stack.enter_context(_timed_calls(engine, ("_clip",), timeline, "optimiser"))
        if engine.teacher is not None:
            stack.enter_context(_timed_module(engine.teacher, timeline, "teacher"))
        stack.enter_context(_timed_module(engine.objective, timeline, "student_forward"))
        student = engine.objective.student.register_forward_hook(
            lambda _module, _args, features: _after_student(features, timeline)
        )
        stack.callback(student.remove)
        yield


def _after_student(features: Any, timeline: Timeline) -> Any:
    """Begin the losses, and in the backward pass the student's part behind them."""
    timeline.switch("losses")
    places = [(state,) for state in features.hidden]
    places += list(features.heads)
    places += [(features.logits,)] if features.logits is not None else []
    tensors = [tensor for place in places for tensor in place]
    passed = iter(
        _Border.apply(lambda: timeline.switch("student_backward"), *tensors)  # type: ignore[no-untyped-call]
    )
    return type(features)(
        tuple(next(passed) for _ in features.hidden),
        tuple(tuple(next(passed) for _ in layer) for layer in features.heads),
        next(passed) if features.logits is not None else None,
    )


@contextlib.contextmanager
def _timed_module(module: nn.Module, timeline: Timeline, name: str) -> Iterator[None]:
    handles = (
        module.register_forward_pre_hook(lambda *_: timeline.enter(name)),
        module.register_forward_hook(lambda *_: timeline.leave()),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _timed_calls(
    owner: Any, names: tuple[str, ...], timeline: Timeline, part: str
) -> Iterator[None]:
    """Record the named functions of an object or module as a part, whoever calls them."""
    before = {name: getattr(owner, name) for name in names if hasattr(owner, name)}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **settings: Any) -> Any:
            with timeline.part(part):
                return call(*args, **settings)

        return wrapper

    for name, call in before.items():
        setattr(owner, name, timed(call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(owner, name, call)
