"""All checks in order: those of a login node in seconds, and those that load models where asked."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from fitb.config import Config
from fitb.config.launcher import LauncherArguments
from fitb.tools.doctor import configuration, folders, gpu, host, interpreter, slurm, worker
from fitb.tools.doctor.check import Check, hidden, secrets_of
from fitb.tools.doctor.deadlines import reason, together, within
from fitb.tools.doctor.job_request import request_of

_FIRST_S, _ROOMS_S = 4.0, 5.5  # together less than ten seconds, whatever does not answer
_MANIFEST_S = 0.4  # for the size of the vocabulary, which is no reason to wait
_SHARDS_S, _MODELS_S, _DEEP_S = 60.0, 300.0, 300.0


def launcher_arguments() -> LauncherArguments:
    """Build the parser of the flags that are the doctor's own."""
    parser = LauncherArguments("fitb doctor")
    parser.add_argument("--deep", action="store_true", help="start DeepSpeed and make one step")
    parser.add_sbatch()
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    return parser


def doctor(where: argparse.Namespace, flags: Sequence[str]) -> list[Check]:
    """Look at everything; nothing that is broken stops it.

    Args:
        where: of `launcher_arguments`.
        flags: of `fitb train`.
    """
    env = dict(os.environ)
    options = [word for text in where.sbatch for word in shlex.split(text)]
    first: dict[str, Any] = together(
        {
            "slurm": slurm.gather,
            "configuration": partial(configuration.read, flags, where.launcher),
        },
        _FIRST_S,
    )
    cluster = first["slurm"] if isinstance(first["slurm"], slurm.Slurm) else slurm.Slurm()
    config, checks = None, []
    if isinstance(first["configuration"], Exception):
        checks = [_late("configuration", first["configuration"])]
    else:
        config, checks = first["configuration"]
    checks = [*checks, *_rooms(config, cluster, options, env)]
    if config:
        checks += _configured(config, flags)
    if where.deep:
        checks += worker.run("fitb.tools.doctor.engine", flags, "deepspeed", _DEEP_S)
    else:
        checks.append(Check("skipped", "deepspeed", "not started; fitb doctor --deep does"))
    return [hidden(check, secrets_of(env)) for check in checks]


def _configured(config: Config, flags: Sequence[str]) -> list[Check]:
    """Look at shards and models; that may take longer, for they are many and large."""
    needs_validation = config.eval.every_steps > 0
    found = within(_SHARDS_S, partial(configuration.shards, config.data.shards, needs_validation))
    check = _late("shards", found) if isinstance(found, Exception) else found
    if check.status in ("bad", "warn"):
        return [check, Check("skipped", "models", "the shards come first")]
    return [check, *worker.run("fitb.tools.doctor.models", flags, "models", _MODELS_S)]


def _rooms(
    config: Config | None, cluster: slurm.Slurm, options: Sequence[str], env: dict[str, str]
) -> list[Check]:
    """Make the checks that load no model, all at the same time."""
    request = request_of(slurm.script_text(), options, env)
    settings = config or Config(configuration.RUN_DIR)
    site_gpus = cluster.gpus(request.partition) if cluster.there else 0
    run_dir, where = settings.run_dir, settings.data.shards if config else None

    def look_at_folders() -> Iterable[Check]:
        read = within(_MANIFEST_S, partial(configuration.manifest_of, config)) if config else {}
        manifest = {} if isinstance(read, Exception) else read
        need_bytes, why = configuration.need(config, manifest)
        local = None if where is None or "://" in where else where
        return folders.look(run_dir, local, need_bytes, why, env, cluster.num_hosts)

    rooms: dict[str, Callable[[], Iterable[Check]]] = {
        "packages": lambda: interpreter.look(env, cluster.there),
        "gpu": lambda: gpu.look(site_gpus),
        "slurm": lambda: slurm.look(cluster, options, request),
        "batch": lambda: [configuration.batch(config, request)] if config and cluster.there else [],
        "folders": look_at_folders,
        "quota": lambda: folders.look_at_quota(run_dir, env),
        "host": lambda: host.look(
            configuration.hub_names(config), env, request.nodes if cluster.there else 1
        ),
        "W&B": lambda: host.look_at_wandb(settings.track.wandb, env),
    }
    done: dict[str, list[Check]] = {name: [] for name in rooms}
    ends = together(
        {name: partial(_collect, done[name], room) for name, room in rooms.items()}, _ROOMS_S
    )
    return [
        check
        for name, end in ends.items()
        for check in [*done[name], *([_late(name, end)] if isinstance(end, Exception) else [])]
    ]


def _collect(found: list[Check], room: Callable[[], Iterable[Check]]) -> None:
    found.extend(room())  # what comes before an error, or before its time is over, stays


def _late(name: str, error: Exception) -> Check:
    if isinstance(error, TimeoutError):
        found = f"{error}: something on this machine does not answer"
    else:
        found = f"could not be looked at: {reason(error)}"
    return Check("warn", name, found, "fitb doctor  # again; then look at the line above")
