"""Cross-rank check of loaded files: every rank hashes what it read, and the hashes must be equal.

Each host has its own cache, so equal names do not imply equal bytes.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fitb.base.errors import SystemFault
from fitb.base.fsio import sha256_json
from fitb.base.world import World

T = TypeVar("T")
_SHOWN = 3  # ranks in a message


def load_alike(load: Callable[[], T], digests: Callable[[T], Mapping[str, str]], world: World) -> T:
    """Load on every rank and check that all ranks loaded the same; a collective call.

    Args:
        load: function that reads files, without collective calls.
        digests: function from what was loaded to a digest of each of its parts, by name.
        world: rank and world size.
    Raises: the exception of `load` if it failed on every rank; SystemFault on every rank if it
        failed on some ranks only, or if digests differ, with the part, the rank and its host.
    """
    if world.size == 1:
        return load()
    loaded: list[T] = []
    failure: Exception | None = None
    said: dict[str, str] | str
    try:
        loaded.append(load())
        said = dict(digests(loaded[0]))
    except Exception as error:  # of any kind: the other ranks must not wait
        failure, said = error, f"{type(error).__name__}: {error}"
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, (socket.gethostname(), said))
    if failure is not None and all(isinstance(each, str) for _, each in everyone):
        raise failure
    apart = differences(everyone)
    if apart:
        more = f"; and {len(apart) - _SHOWN} ranks more" if len(apart) > _SHOWN else ""
        raise SystemFault(
            f"the ranks have not read the same: {'; '.join(apart[:_SHOWN])}{more}. Start again; if"
            " the same host fails again, exclude it: its disk, cache or memory is faulty"
        ) from failure
    return loaded[0]


def differences(everyone: Sequence[tuple[str, Mapping[str, str] | str]]) -> list[str]:
    """Describe how each rank differs from the first rank that could load.

    Args:
        everyone: host of each rank, and its digests or the reason why it could not load.
    """
    number, (host, expected) = next(
        (number, each) for number, each in enumerate(everyone) if not isinstance(each[1], str)
    )
    assert not isinstance(expected, str)
    apart = []
    for rank, (where, said) in enumerate(everyone):
        if isinstance(said, str):
            apart.append(f"rank {rank} on {where} failed alone: {said}")
            continue
        names = [n for n in {**expected, **said} if said.get(n) != expected.get(n)]
        if names:
            apart.append(
                f"rank {rank} on {where} and rank {number} on {host} hold different"
                f" {', '.join(names)} (sha256 of the first {said.get(names[0], 'none')[:12]} and"
                f" {expected.get(names[0], 'none')[:12]})"
            )
    return apart


def digest_of_model(module: torch.nn.Module, config: Any) -> str:
    """Return the sha256 of all parameters and buffers (name, dtype, shape, values) and a config.

    Args:
        module: the model.
        config: its configuration, from transformers.
    """
    digest = hashlib.sha256(config.to_json_string().encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of a fast tokenizer with its special tokens."""
    return sha256_json([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map])
