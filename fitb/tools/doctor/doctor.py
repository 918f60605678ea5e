"""`fitb doctor`: all checks in order, those that load models last."""

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

_FIRST_S, _QUICK_S = 4.0, 5.5  # deadlines; together below ten seconds, whatever hangs
_MANIFEST_S = 0.4  # deadline of reading the vocabulary size, which has a default
_SHARDS_S, _MODELS_S, _DEEP_S = 60.0, 300.0, 300.0


def launcher_arguments() -> LauncherArguments:
    """Return the parser of the doctor's own flags."""
    parser = LauncherArguments("fitb doctor")
    parser.add_argument("--deep", action="store_true", help="start DeepSpeed and make one step")
    parser.add_sbatch()
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    return parser


def doctor(where: argparse.Namespace, flags: Sequence[str]) -> list[Check]:
    """Run all checks; a failing check does not stop the others."""
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
    read = first["configuration"]
    late = isinstance(read, Exception)
    config, checks = (None, [_failed("configuration", read)]) if late else read
    checks = [*checks, *_quick(config, cluster, options, env)]
    if config:
        checks += _configured(config, flags)
    if where.deep:
        checks += worker.run("fitb.tools.doctor.engine", flags, "deepspeed", _DEEP_S)
    else:
        checks.append(Check("skipped", "deepspeed", "not started; fitb doctor --deep does"))
    return [hidden(check, secrets_of(env)) for check in checks]


def _configured(config: Config, flags: Sequence[str]) -> list[Check]:
    """Check shards and models, which may take minutes."""
    needs_validation = config.eval.every_steps > 0
    found = within(_SHARDS_S, partial(configuration.shards, config.data.shards, needs_validation))
    check = _failed("shards", found) if isinstance(found, Exception) else found
    if check.status in ("bad", "warn"):
        return [check, Check("skipped", "models", "fix the shards first")]
    return [check, *worker.run("fitb.tools.doctor.models", flags, "models", _MODELS_S)]


def _quick(
    config: Config | None, cluster: slurm.Slurm, options: Sequence[str], env: dict[str, str]
) -> list[Check]:
    """Run the checks that load no model, concurrently."""
    request = request_of(slurm.script_text(), options, env)
    settings = config or Config(configuration.RUN_DIR)
    site_gpus = cluster.gpus(request.partition) if cluster.there else 0
    run_dir, where = settings.run_dir, settings.data.shards if config else None

    def check_folders() -> Iterable[Check]:
        read = within(_MANIFEST_S, partial(configuration.manifest_of, config)) if config else {}
        manifest = {} if isinstance(read, Exception) else read
        need_bytes, why = configuration.need(config, manifest)
        local = None if where is None or "://" in where else where
        return folders.look(run_dir, local, need_bytes, why, env, cluster.num_hosts)

    groups: dict[str, Callable[[], Iterable[Check]]] = {
        "packages": lambda: interpreter.look(env, cluster.there),
        "gpu": lambda: gpu.look(site_gpus),
        "slurm": lambda: slurm.look(cluster, options, request),
        "batch": lambda: [configuration.batch(config, request)] if config and cluster.there else [],
        "folders": check_folders,
        "quota": lambda: folders.look_at_quota(run_dir, env),
        "host": lambda: host.look(
            configuration.hub_names(config), env, request.nodes if cluster.there else 1
        ),
        "W&B": lambda: host.look_at_wandb(settings.track.wandb, env),
    }
    done: dict[str, list[Check]] = {name: [] for name in groups}
    # Extending a list keeps the checks yielded before an error or the deadline.
    calls = {name: lambda n=name, g=group: done[n].extend(g()) for name, group in groups.items()}
    for name, end in together(calls, _QUICK_S).items():
        if isinstance(end, Exception):
            done[name] = [*done[name], _failed(name, end)]
    return [check for name in groups for check in done[name]]


def _failed(name: str, error: Exception) -> Check:
    late = isinstance(error, TimeoutError)
    found = f"{error}: something hangs" if late else f"could not be checked: {reason(error)}"
    return Check("warn", name, found, "fitb doctor  # again; then see the line above")
