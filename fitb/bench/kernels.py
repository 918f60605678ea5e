"""Launches, waits and slowest kernels of a training step, and the host's share of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NUM_SLOWEST = 12
# Of CUDA's runtime and driver: what enqueues work, and what waits for it.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_ASKS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def kernels_of(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Run `work` and return what the device was asked to do.

    Args:
        work: what to run, such as one training step; on a CPU it is run twice.
        device: where it runs. On a CPU an operator that is no view and no allocation stands for a
            kernel, without compilation, and what a GPU would be waited for stands for a wait.
    Returns: `launches`, `waits`, and `slowest`, the kernels with the longest total time, each as
        `name`, `calls` and `ms`.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as profiled:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    events: list[Any] = list(profiled.events() or ())
    total_us, calls = Counter[str](), Counter[str]()
    for event in events:
        if (event.device_type.name == "CUDA") == on_gpu:
            took_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            total_us[event.name] += took_us
            calls[event.name] += 1
    slowest = [
        {"name": name[:120], "calls": calls[name], "ms": round(us / 1e3, 3)}
        for name, us in total_us.most_common(_NUM_SLOWEST)
    ]
    if on_gpu:
        launches = sum(event.name.startswith(_LAUNCHES) for event in events)
        waits = sum(event.name.startswith(_WAITS) for event in events) - 1  # the one above
    else:
        with torch.compiler.set_stance("force_eager"), _Operators() as operators:
            work()
        launches, waits = operators.launches, operators.waits
    return {"launches": launches, "waits": waits, "slowest": slowest}


class _Operators(TorchDispatchMode):
    """Counts operators that compute, and those that a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.waits = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        returns = function._schema.returns
        views = any(one.alias_info and not one.alias_info.is_write for one in returns)
        allocates = function.overloadpacket.__name__.startswith(("empty", "new_empty"))
        self.launches += not views and not allocates
        self.waits += function in _ASKS
        return function(*args, **(kwargs or {}))


def host_ms(seconds: Callable[[int], float], micro_batches: tuple[int, int]) -> dict[str, float]:
    """Return the milliseconds that the host spends on a micro-batch and, beside them, on a step.

    Args:
        seconds: seconds of a step with a number of micro-batches so small that only the host's
            work takes time.
        micro_batches: two numbers of micro-batches, the smaller first.
    """
    few, many = micro_batches
    took = {number: 1e3 * seconds(number) for number in micro_batches}
    each = max(0.0, (took[many] - took[few]) / (many - few))
    return {"micro_batch": round(each, 3), "step": round(max(0.0, took[few] - few * each), 3)}
