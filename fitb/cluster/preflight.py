"""Preflight: check the hosts of a job before its tasks start, and requeue it without bad ones.

`python -m fitb.cluster.preflight [flags of fitb train]` runs in the batch shell. One job step per
host, so that an unreachable host affects no other, runs fitb.training.host_check, which writes
RUN/preflight/JOB.RESTART.START/HOST.json on the shared filesystem; a host without a file has
failed. Each bad host is an event, the job is requeued without it, and the attempt counts as a
graceful shutdown.
Exit codes: 0 train, 85 the job comes back without the bad hosts, 93 it cannot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitb.base import log, signals
from fitb.base.errors import FINISHED, RESUME, STOP, FitbError, SystemFault
from fitb.base.fsio import read_json
from fitb.cluster import exclusion, slurm
from fitb.config import Config
from fitb.config.parser import parse
from fitb.rundir import names, restart
from fitb.rundir.events import num_attempts

logger = logging.getLogger("fitb.cluster.preflight")  # run as a script it has another name

CLOCK_S = 5.0  # largest allowed offset of a clock from the median
START_S = 60.0  # until every host has started
LINK_S = 60.0  # deadline of a reduction over the network; FITB_PREFLIGHT_LINK_S overrides it
ALL_OWN_S = 60.0  # deadline of all checks that need no other host, without GPUs
GPU_S = 10.0  # more for each GPU: its context, and libraries that a cold filesystem loads slowly
Record = dict[str, Any]  # HOST.json: host, failures, reduced, pairs, clock_s


def link_deadline_s(env: Mapping[str, str]) -> float:
    return float(env.get("FITB_PREFLIGHT_LINK_S", LINK_S))


def pair_rounds(num_hosts: int) -> list[list[tuple[int, int]]]:
    """Return rounds of neighbour pairs on a ring, with each host in at most one pair per round.

    Every host is paired with both neighbours, in two rounds, or three for an odd number of hosts.
    A good host between two bad ones cannot be distinguished from them.
    """
    ring = [(i, (i + 1) % num_hosts) for i in range(num_hosts)] if num_hosts > 2 else [(0, 1)]
    last = [ring.pop()] if num_hosts % 2 and num_hosts > 2 else []
    rounds = [ring[0::2], ring[1::2], last]
    return [pairs for pairs in rounds if pairs] if num_hosts > 1 else []


@dataclass(frozen=True)
class Verdict:
    """Result of a preflight.

    Args:
        bad: host -> reasons, in the order of the hosts.
        failure: why the job cannot train although no single host is at fault.
        transient: whether starting the job again may help against `failure`.
    """

    bad: dict[str, list[str]]
    failure: str | None = None
    transient: bool = True


def judge(hosts: Sequence[str], records: Mapping[str, Record]) -> Verdict:
    """Decide which hosts are bad; a pure function.

    If only two hosts exist and cannot reach each other, or their clocks differ, both are bad. If
    among more hosts no two reach each other, the network is at fault and no host is bad.

    Args:
        hosts: hosts of the job.
        records: host -> record; a host that did not answer has none.
    """
    reasons: dict[str, list[str]] = {host: [] for host in hosts}
    for host in hosts:
        if host not in records:
            reasons[host].append("no answer before the deadline")
        else:
            reasons[host] += records[host]["failures"]
    for host, why in _clocks(records).items():
        reasons[host].append(why)
    misled = [record["unreachable"] for record in records.values() if record.get("unreachable")]
    network = {} if misled else _network(records)
    for host, why in network.items():
        reasons[host].append(why)
    bad = {host: whys for host, whys in reasons.items() if whys}
    if not bad and misled:
        return Verdict({}, misled[0], transient=False)
    if not bad and not all(record["reduced"] for record in records.values()):
        return Verdict({}, "the all-reduce over all hosts failed, and no single host is at fault")
    return Verdict(bad)


def _clocks(records: Mapping[str, Record]) -> dict[str, str]:
    """Return host -> reason, for clocks off the median; all were read at the same moment."""
    clocks = {host: r["clock_s"] for host, r in records.items() if r.get("clock_s") is not None}
    median = statistics.median(clocks.values()) if clocks else 0.0
    return {
        host: f"its clock is {clock - median:+.1f} s off the median of the hosts"
        for host, clock in clocks.items()
        if abs(clock - median) > CLOCK_S
    }


def _network(records: Mapping[str, Record]) -> dict[str, str]:
    """Return host -> reason, for hosts that could reduce with none of the hosts that answered."""
    failed: dict[str, list[str]] = {}
    for host, record in records.items():
        tried = {other: ok for other, ok in record["pairs"].items() if other in records}
        worked = [o for o, ok in tried.items() if ok and records[o]["pairs"].get(host)]
        if tried and not worked:
            failed[host] = sorted(tried)
    if len(records) > 2 and len(failed) == len(records):
        return {}
    return {host: f"no reduction with {', '.join(others)}" for host, others in failed.items()}


def ask_hosts(hosts: Sequence[str], folder: Path, config: Config, env: Mapping[str, str]) -> bool:
    """Run the checks on each host until all have ended or are late.

    Args:
        hosts: hosts of the job.
        folder: folder of the hosts' records and output.
        config: configuration of the run.
        env: environment of the job.
    Returns: whether the checks were interrupted by a shutdown signal, as on preemption.
    """
    link_s = link_deadline_s(env)
    gpus_s = GPU_S * slurm.num_gpus(env)  # of a host's own checks, and of those that wait for it
    deadline_s = 30 + ALL_OWN_S + START_S + 2 * gpus_s + (3 + len(pair_rounds(len(hosts)))) * link_s
    task = [sys.executable, "-m", "fitb.training.host_check", str(folder), ",".join(hosts)]
    task += [config.run_dir, *([config.data.cache_dir] if config.data.cache_dir else [])]
    steps = []
    all_gpus = {**os.environ, "SLURM_GPU_BIND": "none"}  # one task checks every GPU of its host
    for host in hosts:
        where = ["srun", "--nodes=1", f"--nodelist={host}", "--ntasks=1", "--ntasks-per-node=1"]
        command = [*where, "--overlap", *task]
        with open(folder / f"{host}.out", "ab") as out:  # srun --output expands patterns
            steps.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=all_gpus,
                )
            )
    deadline = time.monotonic() + deadline_s
    codes = []
    for step in steps:
        with contextlib.suppress(subprocess.TimeoutExpired):
            codes.append(step.wait(max(0.0, deadline - time.monotonic())))
    for step in steps:
        if step.poll() is None:
            step.kill()
            step.wait()
    return bool({RESUME, *restart.ENDED_BY_OUR_SIGNAL} & set(codes))


def come_back(
    run_dir: Path, verdict: Verdict, source: restart.Source, seen: int, env: Mapping[str, str]
) -> int:
    """Record why this attempt did not train, and requeue the job, or leave it to its next link.

    Args:
        run_dir: run folder.
        verdict: result of the preflight.
        source: job of this attempt.
        seen: number of attempts before this one.
        env: environment of the job.
    Returns: RESUME, or STOP if a restart cannot help, too few hosts would be left, or too many
        attempts have failed.
    Raises: SystemFault if Slurm does not answer or refuses.
    """
    findings = [{"event": "bad_host", "host": h, "checks": why} for h, why in verdict.bad.items()]
    unfit = f"unfit hosts: {', '.join(verdict.bad)}" if verdict.bad else verdict.failure
    code, why, excluded = RESUME if verdict.transient else STOP, f"preflight: {unfit}", ""
    if verdict.bad:
        try:
            excluded = exclusion.exclude_too(list(verdict.bad), run_dir, source, env)
        except ValueError as error:
            code, why = STOP, f"{why}; {error}"
    decision = restart.decide(run_dir, code, source=source, seen=seen, why=why, findings=findings)
    logger.info("%s", decision.reason)
    if decision.exit_code != RESUME:
        return decision.exit_code
    # Slurm terminates this process some seconds after the requeue, and accepts the exclusion only
    # after the requeue.
    signal.signal(signals.PREEMPTION, signal.SIG_IGN)
    if not source.chain:
        slurm.tell("scontrol", "requeue", source.job)
    if excluded:
        exclusion.update(excluded, source, env)
    return RESUME


def preflight(config: Config, env: Mapping[str, str]) -> int:
    """Check the hosts of a job; return FINISHED (train), RESUME or STOP.

    Args:
        config: configuration of the run.
        env: environment of the job.
    Raises: SystemFault if Slurm does not answer or refuses.
    """
    source, run_dir = restart.Source.from_env(env), Path(config.run_dir)
    if restart.already_over(run_dir, source=source, steps=config.steps):
        return FINISHED  # the tasks notice it as well, and exit at once
    seen = num_attempts(run_dir)
    hosts = slurm.expand_nodelist(env["SLURM_JOB_NODELIST"])
    folder = run_dir / names.PREFLIGHT / f"{source.job}.{source.restart}.{source.start}"
    folder.mkdir(parents=True, exist_ok=True)
    interrupted = ask_hosts(hosts, folder, config, env)
    records: dict[str, Record] = {}
    for host in hosts:
        with contextlib.suppress(OSError, ValueError):  # no answer
            records[host] = read_json(folder / f"{host}.json", "host", "failures")
    verdict = judge(hosts, records)
    if interrupted:
        verdict = Verdict({}, "interrupted by a shutdown signal")
    for host, reasons in verdict.bad.items():
        logger.error("preflight: %s is not fit: %s", host, "; ".join(reasons))
    if not verdict.bad and not verdict.failure:
        logger.info("preflight: all %d hosts are fit", len(hosts))
        return FINISHED
    if (state := slurm.job_state(source.job)) != "RUNNING":
        logger.info("no requeue from here: Slurm reports %s for this job", state)
        return RESUME
    return come_back(run_dir, verdict, source, seen, env)


def main(args: Sequence[str]) -> int:
    log.setup()
    try:
        return preflight(parse(Config, "fitb train", args), os.environ)
    except KeyError as error:
        fault: FitbError = SystemFault(f"{error} is not set; this runs in a Slurm batch script")
    except FitbError as error:
        fault = error
    logger.error("%s", fault)
    return fault.exit_code if fault.restart_helps else STOP


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
