"""Checks of Slurm from a login node: does it answer, how it treats a job, does the job fit."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.cluster import slurm_config
from fitb.cluster.process import Output
from fitb.cluster.scripts import find_script
from fitb.cluster.slurm import COMMANDS, absent
from fitb.tools.doctor.check import Check, Status
from fitb.tools.doctor.deadlines import outputs_of
from fitb.tools.doctor.job_request import JobRequest, gpus_option, num_gpus, timing

_DEADLINE_S = 3.0  # per command
_QUERIES = {
    "config": ("scontrol", "show", "config"),
    "partitions": ("scontrol", "show", "partition"),
    "hosts": ("sinfo", "--noheader", "--format=%R|%D|%c|%G"),
    "munge": ("munge", "-n"),
}
_CHAIN = (
    "export FITB_CHAIN=NAME-$(date +%s); for i in 1 2 3; do sbatch --no-requeue"
    " --dependency=singleton slurm/distill.sh ...; done"
)
# Fixes by the setting that fitb.cluster.slurm_config warns of.
_FIXES = {
    "JobRequeue": "sbatch --requeue slurm/distill.sh ...",
    "Requeue": _CHAIN,
    "RequeueExit": "in slurm.conf, by the site: RequeueExit without 85 and 93",
    "RequeueExitHold": "in slurm.conf, by the site: RequeueExitHold without 85 and 93",
    "PreemptMode": _CHAIN,
    "PreemptType": "sacctmgr show qos format=name,preemptmode,gracetime",
    "GraceTime": "fitb rehearse -- [flags of fitb train]  # does a save fit?",
    "KillWait": "fitb rehearse -- [flags of fitb train]  # does a save fit?",
    "ProctrackType": "in slurm.conf, by the site: ProctrackType=proctrack/cgroup",
    "MaxTime": "sbatch --time=HH:MM:SS slurm/distill.sh ...",
}


@dataclass(frozen=True)
class Hosts:
    """Identical hosts of a partition.

    Args:
        partition: partition name.
        number: number of hosts.
        cpus: CPUs per host.
        gpus: GPUs per host.
        option: value of --gpus-per-node that excludes MIG slices; empty if a plain number does.
    """

    partition: str
    number: int
    cpus: int
    gpus: int
    option: str = ""


@dataclass(frozen=True)
class Slurm:
    """Output of Slurm's commands.

    Args:
        absent: Slurm commands that are not on PATH.
        config: settings of `scontrol show config`; empty if it failed.
        partitions: name -> fields of `scontrol show partition`.
        hosts: hosts that sinfo lists.
        answers: query name -> output.
    """

    absent: tuple[str, ...] = COMMANDS
    config: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hosts: tuple[Hosts, ...] = ()
    answers: Mapping[str, Output] = field(default_factory=dict)

    @property
    def there(self) -> bool:
        return len(self.absent) < len(COMMANDS)

    @property
    def num_hosts(self) -> int:
        """Number of hosts of the largest partition; partitions may share hosts."""
        sizes: Counter[str] = Counter()
        for group in self.hosts:
            sizes[group.partition] += group.number
        return max(sizes.values(), default=0)

    def partition(self, name: str | None) -> str | None:
        """Return the partition that a job goes to; None if that is unknown."""
        try:
            return slurm_config.choose_partition(self.partitions, name).get("PartitionName")
        except ConfigError:
            return None

    def gpus(self, name: str | None) -> int:
        """Return the most GPUs on a host of a job's partition."""
        wanted = self.partition(name)
        return max((group.gpus for group in self.hosts if group.partition == wanted), default=0)


def gather() -> Slurm:
    """Run all queries concurrently."""
    if absent() == COMMANDS:
        return Slurm()
    answers = outputs_of(_QUERIES, _DEADLINE_S)
    return Slurm(
        absent(),
        slurm_config.parse_config(answers["config"].text),
        slurm_config.parse_partitions(answers["partitions"].text),
        tuple(parse_hosts(answers["hosts"].text)),
        answers,
    )


def parse_hosts(text: str) -> Iterator[Hosts]:
    """Parse lines of `sinfo --format=%R|%D|%c|%G`; a CPU number may end with +."""
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 4 and parts[1].isdigit():
            cpus = re.match(r"\d+", parts[2])
            gpus, option = num_gpus(parts[3]), gpus_option(parts[3])
            yield Hosts(parts[0], int(parts[1]), int(cpus[0]) if cpus else 0, gpus, option)


def presence(slurm: Slurm) -> Check:
    """Check that Slurm is installed and answers."""
    if not slurm.there:
        return Check("skipped", "slurm", "none of its commands is on PATH")
    if slurm.absent:
        found = f"{', '.join(slurm.absent)} not on PATH, but other commands of Slurm are"
        return Check("bad", "slurm", found, "module load slurm")
    problems = [a.problem for name, a in slurm.answers.items() if not a.ok and name != "munge"]
    if problems:
        return Check("bad", "slurm", problems[0], "scontrol ping  # and report it to the site")
    version = slurm.config.get("SLURM_VERSION", "unknown")
    names = ", ".join(slurm.partitions)
    found = f"{version}; partitions {names}; {slurm.num_hosts} hosts in the largest"
    return Check("ok", "slurm", found)


def munge(answer: Output | None, auth: str, slurm_answers: bool) -> Check:
    """Check that this host can authenticate to Slurm.

    Args:
        answer: output of `munge -n`; None if it was not run.
        auth: Slurm's AuthType; empty if unknown.
        slurm_answers: whether a query was answered, which takes authentication too.
    """
    if answer is None or (auth and auth != "auth/munge"):
        return Check("skipped", "munge", f"Slurm authenticates by {auth or 'an unknown method'}")
    if answer.ok:
        return Check("ok", "munge", "`munge -n` makes a credential")
    if answer.missing and slurm_answers:
        return Check("ok", "munge", "not on PATH, but Slurm answers: its library is there")
    if answer.missing:
        fix = "apt-get install munge  # with the cluster's /etc/munge/munge.key, by the site"
        return Check("bad", "munge", f"{answer.problem}, and Slurm does not answer", fix)
    return Check("bad", "munge", answer.problem, "systemctl restart munge  # by the site")


def settings(slurm: Slurm, partition: str | None) -> Iterator[Check]:
    """Yield the findings of fitb.cluster.slurm_config about the settings, each with a fix."""
    if not (slurm.config and slurm.partitions):
        return
    try:
        fields = slurm_config.choose_partition(slurm.partitions, partition)
        found = slurm_config.findings(slurm.config, fields)
    except ConfigError as error:
        fix = f"fitb doctor --sbatch=--partition={next(iter(slurm.partitions))} ..."
        yield Check("bad" if partition else "warn", "partition", str(error), fix)
        return
    for one in found:
        fix = "" if one.verdict == "ok" else _FIXES.get(one.name, "scontrol show config")
        yield Check(one.verdict, one.name, f"{one.value}: {one.sentence}", fix)


def shape(request: JobRequest, hosts: Sequence[Hosts], partition: str) -> Check:
    """Check that hosts of the partition have the resources that the job requests."""
    name = "job shape"
    mine = [group for group in hosts if group.partition == partition]
    if not mine:
        return Check("skipped", name, f"sinfo shows no hosts of partition {partition}")
    wanted = f"{request.tasks} tasks x {request.cpus} CPUs and {request.gpus} GPUs on each of"
    wanted += f" {request.nodes} hosts"
    most = max(mine, key=lambda group: (group.gpus, group.cpus))
    fits = [o for o in mine if o.gpus >= request.gpus and o.cpus >= request.tasks * request.cpus]
    if sum(group.number for group in fits) < request.nodes:
        total = sum(group.number for group in mine)
        others = sorted({o.partition for o in hosts if o.gpus >= request.gpus > most.gpus})
        also = f"; GPUs are in {', '.join(others)}" if others else ""
        found = f"the job requests {wanted}; partition {partition} has {total} hosts, the largest"
        found += f" with {most.cpus} CPUs and {most.gpus} GPUs{also}: it never starts"
        tasks = max(1, min(request.tasks, most.gpus or most.cpus))
        cpus = max(1, min(request.cpus, most.cpus // tasks))
        fix = f"sbatch --nodes={min(request.nodes, total)} --ntasks-per-node={tasks}"
        fix += f" --gpus-per-node={min(request.gpus, most.gpus)} --cpus-per-task={cpus}"
        return Check("bad", name, found, f"{fix} slurm/distill.sh ...")
    if request.gpus and request.tasks != request.gpus:
        fix = f"sbatch --ntasks-per-node={request.gpus} --gpus-per-node={request.gpus} ..."
        status: Status = "bad" if request.tasks > request.gpus else "warn"
        return Check(status, name, f"{wanted}: fitb takes one task per GPU", fix)
    if not request.gpus and most.gpus:
        fix = f"sbatch --gpus-per-node={most.gpus} --ntasks-per-node={most.gpus} ..."
        return Check("warn", name, f"{wanted}, whose {most.gpus} GPUs stay idle", fix)
    return Check("ok", name, f"{wanted} of partition {partition}")


def environment(env: Mapping[str, str], version: str) -> Iterator[Check]:
    """Yield a warning for each variable that overrides what slurm/distill.sh sets."""
    inside = env.get("SLURM_JOB_ID")
    overrides = {  # variable -> whether it overrides something, and with what effect
        "SBATCH_NO_REQUEUE": ("SBATCH_NO_REQUEUE" in env, "a preempted job does not come back"),
        "SBATCH_SIGNAL": (
            not env.get("SBATCH_SIGNAL", "B:").startswith("B:"),
            "overrides B:USR1@300, so the batch script gets no signal",
        ),
        "SBATCH_OPEN_MODE": (
            env.get("SBATCH_OPEN_MODE", "").startswith("t"),
            "a restart empties the job's log",
        ),
        "OMP_NUM_THREADS": (bool(env.get("OMP_NUM_THREADS")), "overrides --cpus-per-task"),
        "SRUN_CPUS_PER_TASK": (
            "SRUN_CPUS_PER_TASK" in env and not inside,
            "srun uses it in a job without --cpus-per-task",
        ),
    }
    found = [
        (f"{name}={env[name]}: {effect}", f"unset {name}")
        for name, (overriding, effect) in overrides.items()
        if overriding
    ]
    if inside:
        text = f"this shell is inside job {inside}, whose SLURM_ variables sbatch passes on"
        found.insert(0, (text, "exit  # and submit from the login shell"))
    for text, fix in found:
        yield Check("warn", "job environment", text, fix)
    if not found:
        yield Check(
            "ok", "job environment", f"nothing overrides slurm/distill.sh (Slurm {version})"
        )


def script_text() -> str:
    """Return the text of distill.sh as `fitb scripts` finds it; empty if it is not found."""
    script = find_script()
    return script.read_text() if script else ""


def look(slurm: Slurm, options: Sequence[str], request: JobRequest) -> Iterator[Check]:
    """Yield all checks of Slurm; a single one if it is not installed."""
    yield presence(slurm)
    if not slurm.there:
        return
    auth = slurm.config.get("AuthType", "")
    yield munge(slurm.answers.get("munge"), auth, bool(slurm.config))
    script = script_text()
    yield from settings(slurm, request.partition)
    partition = slurm.partition(request.partition)
    if not script:
        yield Check("skipped", "job shape", "slurm/distill.sh is not found")
    elif partition:
        yield shape(request, slurm.hosts, partition)
    yield from timing(script, options, os.environ)
    yield from environment(os.environ, slurm.config.get("SLURM_VERSION", "unknown"))
