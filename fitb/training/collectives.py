"""Collectives that carry results and exceptions: an error on one rank is raised on all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fitb.base.errors import FitbError, SystemFault
from fitb.base.modes import fault_of
from fitb.base.world import World

T = TypeVar("T")
logger = logging.getLogger(__name__)


def on_main(action: Callable[[], T], world: World, group: dist.ProcessGroup | None = None) -> T:
    """Run an action on rank 0; return its result, or raise its error, on every rank."""
    outcome: list[Any] = _outcome(action) if world.is_main else [None, None]
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def on_all(
    action: Callable[[], T], world: World, group: dist.ProcessGroup | None = None
) -> list[T]:
    """Run an action on every rank; return all results, or raise the first rank's error, on each."""
    mine = _outcome(action)
    outcomes: list[Any] = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(outcomes, mine, group=group)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def _outcome(action: Callable[[], T]) -> list[Any]:
    try:
        return [action(), None]
    except FitbError as error:
        return [None, error]
    except OSError as error:
        return [None, fault_of(error, "a file of the run")]
    except Exception as error:  # of any type: the other ranks must not wait
        logger.exception("unexpected")
        return [None, SystemFault(f"{type(error).__name__}: {error}")]
