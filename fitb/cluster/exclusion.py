"""Excluding hosts from the next start of a job: bad ones, and slow ones if asked.

`python -m fitb.cluster.exclusion RUN_DIR` excludes the hosts that this submission has found slow
(`slow_host` in events.jsonl) from the job that was just requeued, or from the later links of its
chain: Slurm refuses that while the job runs. It excludes none if too few hosts would be left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fitb.base.errors import FitbError
from fitb.cluster import slurm
from fitb.rundir.events import Event, read_events
from fitb.rundir.restart import Source


def barred(events: Iterable[Event], source: Source) -> list[str]:
    """Return the hosts that this submission has found bad before."""
    own = (e for e in events if e["event"] == "bad_host" and source.submitted(e))
    return list(dict.fromkeys(str(event["host"]) for event in own))


def slow_hosts(events: Iterable[Event], source: Source) -> list[str]:
    """Return the hosts that attempts of this submission have found slow."""
    found: dict[str, None] = {}
    own = set()
    for event in events:
        if event["event"] == "attempt" and source.submitted(event):
            own.add(event.get("attempt"))
        if event["event"] == "slow_host" and event.get("attempt") in own and "host" in event:
            found[event["host"]] = None
    return list(found)


def exclude_too(hosts: Sequence[str], run_dir: Path, source: Source, env: Mapping[str, str]) -> str:
    """Return all hosts to exclude, in Slurm's notation: these and those excluded before.

    Args:
        hosts: hosts to exclude from now on.
        run_dir: run folder.
        source: submission of the job.
        env: environment of the job.
    Raises: ValueError if too few would be left; SystemFault if Slurm does not answer.
    """
    known = [*slurm.excluded_hosts(source.job), *barred(read_events(run_dir), source), *hosts]
    all_of_them = list(dict.fromkeys(known))
    partition, needed = env["SLURM_JOB_PARTITION"], int(env["SLURM_JOB_NUM_NODES"])
    left = set(slurm.hosts_of_partition(partition)) - set(all_of_them)
    if len(left) < needed:
        raise ValueError(
            f"without {', '.join(all_of_them)} partition {partition} has {len(left)} hosts and"
            f" the job needs {needed}: repair them, or ask for fewer (--nodes)"
        )
    return ",".join(all_of_them)


def update(hosts: str, source: Source, env: Mapping[str, str]) -> None:
    """Exclude hosts from the next start: of the requeued job, or of its chain's later links.

    Raises: SystemFault if Slurm refuses.
    """
    jobs = slurm.waiting_links(env["SLURM_JOB_NAME"]) if source.chain else [source.job]
    for job in jobs:
        slurm.tell("scontrol", "update", f"JobId={job}", f"ExcNodeList={hosts}")


def main(args: Sequence[str]) -> int:
    run_dir, source = Path(args[0]), Source.from_env(os.environ)
    try:
        if slow := slow_hosts(read_events(run_dir), source):
            update(exclude_too(slow, run_dir, source, os.environ), source, os.environ)
            print(f"fitb: excluded as slow: {', '.join(slow)}")
    except ValueError as error:
        print(f"fitb: slow hosts stay, {error}")
    except FitbError as error:
        print(f"fitb: slow hosts stay: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
