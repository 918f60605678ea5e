"""The checkpointed state of a DeepSpeed engine: full fp32 tensors and plain numbers.

It is portable: it depends neither on the ZeRO stage nor on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fitb.base.world import World
from fitb.model.fragments import key_of
from fitb.objective.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class PortableState:
    """Gathers and restores weights, moments and loss scale of a DeepSpeed engine.

    Args:
        engine: DeepSpeed engine, freshly initialised or training.
        objective: the module that it trains.
        world: rank and world size of this process.
        device: device of this process.
    """

    def __init__(
        self, engine: Any, objective: Objective, world: World, device: torch.device
    ) -> None:
        self._engine, self._objective = engine, objective
        self._world, self._device = world, device
        _make_moments(engine.optimizer)

    def _parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self._objective.named_parameters() if p.requires_grad)

    def full_tensors(self, moments: bool = True) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield name and full fp32 tensor of each parameter, on the CPU. Collective.

        Names are `param/NAME` and, with moments, `exp_avg/NAME` and `exp_avg_sq/NAME`.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._parameters():
            yield f"param/{name}", safe_get_full_fp32_param(parameter).cpu()
            for moment in MOMENTS if moments else ():
                full = safe_get_full_optimizer_state(parameter, moment)
                yield f"{moment}/{name}", full.cpu()

    def fragments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield key and flat fp32 fragment of all that this rank holds, on its device.

        They are views: the next update changes them. Nothing is communicated.
        """
        for name, parameter in self._parameters():
            for kind in ("param", *MOMENTS):
                begin, part = self._held(parameter, None if kind == "param" else kind)
                if part is not None and part.numel():
                    yield key_of(f"{kind}/{name}", begin), part

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of every full tensor that `fragments` are of, on any rank."""
        return {
            f"{kind}/{name}": list(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self._parameters()
            for kind in ("param", *MOMENTS)
        }

    def load_full_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `full_tensors` yielded into this rank's partition."""
        for name, parameter in self._parameters():
            for kind in ("param", *MOMENTS):
                self._set(parameter, None if kind == "param" else kind, tensors[f"{kind}/{name}"])

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the optimiser's state: step counters and loss scaler, as numbers."""
        zero = self._engine.optimizer
        states = zero.optimizer.state.values()
        scaler = getattr(zero, "loss_scaler", None)
        return {
            "optimizer_steps": max((float(s["step"]) for s in states if "step" in s), default=0.0),
            "skipped_steps": int(self._engine.skipped_steps),
            "loss_scaler": {k: getattr(scaler, k) for k in _SCALER_KEYS if hasattr(scaler, k)},
        }

    def load_scalars(self, scalars: dict[str, Any], precision: str) -> None:
        """Restore what `scalars` returned; the loss scaler only in fp16."""
        zero = self._engine.optimizer
        for state in zero.optimizer.state.values():
            state["step"].fill_(scalars["optimizer_steps"])
        self._engine.skipped_steps = scalars["skipped_steps"]
        if precision == "fp16":
            for key, value in scalars["loss_scaler"].items():
                setattr(zero.loss_scaler, key, value)

    def _held(
        self, parameter: torch.nn.Parameter, moment: str | None
    ) -> tuple[int, torch.Tensor | None]:
        """Return where in a flattened parameter this rank's fragment begins, and the fragment."""
        from deepspeed import utils

        if not hasattr(parameter, "ds_id"):
            held = parameter._hp_mapping  # type: ignore[attr-defined]
            if held is None:
                return 0, None
            return held.lp_fragment_address.start, held.get_hp_fragment(moment).detach()
        if moment is None:  # ZeRO 3: partitions are padded to equal size
            local = utils.safe_get_local_fp32_param(parameter)
        else:
            local = utils.safe_get_local_optimizer_state(parameter, moment)
        begin = self._world.rank * local.numel()
        full: int = parameter.ds_numel  # type: ignore[attr-defined]
        return begin, local.detach().flatten()[: max(0, full - begin)]

    def _set(self, parameter: torch.nn.Parameter, moment: str | None, full: torch.Tensor) -> None:
        from deepspeed import utils

        set_weight = utils.safe_set_full_fp32_param
        set_moment = utils.safe_set_full_optimizer_state
        if hasattr(parameter, "ds_id"):  # ZeRO 3: its partitions are padded to equal size
            set_weight = utils.safe_set_local_fp32_param
            set_moment = utils.safe_set_local_optimizer_state
            size = utils.safe_get_local_fp32_param(parameter).numel()
            padded = torch.zeros(size * self._world.size)
            padded[: full.numel()] = full.flatten()
            full = padded.narrow(0, size * self._world.rank, size)
        full = full.to(self._device)
        if moment is None:
            set_weight(parameter, full)
        else:
            set_moment(parameter, full, moment)


def _make_moments(zero: Any) -> None:
    """Create Adam's moments, which the optimiser creates lazily in its first step."""
    # DeepSpeed 0.19.8 (stages 1 and 2) links parameters to their moments once, after the step of
    # the first parameter group, and would never find those of later groups.
    flat = getattr(zero, "fp32_partitioned_groups_flat", None)
    if flat is None:
        flat = [p for group in zero.optimizer.param_groups for p in group["params"]]
    fused = zero.optimizer.defaults.get("fused")
    for tensor in flat:
        state = zero.optimizer.state[tensor]
        if not state:
            device = tensor.device if fused else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()
