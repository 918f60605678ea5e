"""Ranks that load alike: what each has read is hashed, and compared before it is used.

Each host reads through a cache of its own, so an equal name does not mean equal bytes.
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
    """Load on every rank, and return it where every rank has loaded the same; collective.

    Args:
        load: reads files, each rank for itself; waits for no other rank.
        digests: of what was loaded, by names for people.
    Raises: what `load` raised where it failed on every rank; SystemFault on every rank where it
        failed on some only, or where digests differ, naming what, the rank and its host.
    """
    if world.size == 1:
        return load()
    loaded: list[T] = []
    failure: Exception | None = None
    said: dict[str, str] | str
    try:
        loaded.append(load())
        said = dict(digests(loaded[0]))
    except Exception as error:  # whatever it is: the others must not wait for this rank
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
            " it is the same host again, do without it, for its disk, cache or memory is at fault"
        ) from failure
    return loaded[0]


def differences(everyone: Sequence[tuple[str, Mapping[str, str] | str]]) -> list[str]:
    """Say for each rank what it holds other than the first one that could load.

    Args:
        everyone: of each rank, its host, and its digests or why it could not load.
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
    """Return the sha256 of every parameter and buffer (name, type, shape, values) and a config.

    Args:
        config: of transformers.
    """
    digest = hashlib.sha256(config.to_json_string().encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of what a fast tokenizer does, special tokens included."""
    return sha256_json([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map])
