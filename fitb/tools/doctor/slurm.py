"""Slurm as the login node sees it: does it answer, what will it do to a job, does the job fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.cluster import slurm_config
from fitb.cluster.process import Output
from fitb.cluster.scripts import find_script
from fitb.cluster.slurm import COMMANDS, absent
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.deadlines import outputs_of
from fitb.tools.doctor.job_request import JobRequest, gpus_option, num_gpus, timing

_DEADLINE_S = 3.0  # of a command
_QUESTIONS = {
    "config": ("scontrol", "show", "config"),
    "partitions": ("scontrol", "show", "partition"),
    "hosts": ("sinfo", "--noheader", "--format=%R|%D|%c|%G"),
    "munge": ("munge", "-n"),
}
_CHAIN = (
    "export FITB_CHAIN=NAME-$(date +%s); for i in 1 2 3; do sbatch --no-requeue"
    " --dependency=singleton slurm/distill.sh ...; done"
)
# What to type, by the setting that fitb.cluster.slurm_config has found wanting.
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
    """Equal hosts of a partition.

    Args:
        partition: its name.
        number: of hosts.
        cpus: of each.
        gpus: of each.
        option: of sbatch for all of them, where their number alone would mean others too.
    """

    partition: str
    number: int
    cpus: int
    gpus: int
    option: str = ""


@dataclass(frozen=True)
class Slurm:
    """What Slurm's commands said.

    Args:
        absent: commands of Slurm that are not on PATH.
        config: of `scontrol show config`; empty where it did not answer.
        partitions: of `scontrol show partition`.
        hosts: of sinfo.
        answers: by the names of the questions.
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
        """Of the largest partition: one host may be in several."""
        sizes: dict[str, int] = {}
        for one in self.hosts:
            sizes[one.partition] = sizes.get(one.partition, 0) + one.number
        return max(sizes.values(), default=0)

    def partition(self, name: str | None) -> str | None:
        """Return the partition that a job goes to, None where nobody says."""
        try:
            return slurm_config.choose_partition(self.partitions, name).get("PartitionName")
        except ConfigError:
            return None

    def gpus(self, name: str | None) -> int:
        """Return the GPUs of a host of a job's partition."""
        wanted = self.partition(name)
        return max((one.gpus for one in self.hosts if one.partition == wanted), default=0)


def gather() -> Slurm:
    """Ask Slurm everything at once."""
    if absent() == COMMANDS:
        return Slurm()
    answers = outputs_of(_QUESTIONS, _DEADLINE_S)
    return Slurm(
        absent(),
        slurm_config.parse_config(answers["config"].text),
        slurm_config.parse_partitions(answers["partitions"].text),
        tuple(parse_hosts(answers["hosts"].text)),
        answers,
    )


def parse_hosts(text: str) -> Iterator[Hosts]:
    """Read lines of `sinfo --format=%R|%D|%c|%G`; a number may end with + or K."""
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 4 and parts[1].isdigit():
            cpus = re.match(r"\d+", parts[2])
            gpus, option = num_gpus(parts[3]), gpus_option(parts[3])
            yield Hosts(parts[0], int(parts[1]), int(cpus[0]) if cpus else 0, gpus, option)


def presence(slurm: Slurm) -> Check:
    """Say whether Slurm is there and answers."""
    if not slurm.there:
        found = (
            "none of its commands is on PATH; fitb train, torchrun and launch.distill work alone"
        )
        return Check("skipped", "slurm", found)
    if slurm.absent:
        found = f"{', '.join(slurm.absent)} not on PATH, but other commands of Slurm are"
        return Check("bad", "slurm", found, "module load slurm")
    unanswered = [a.problem for n, a in slurm.answers.items() if not a.ok and n != "munge"]
    if unanswered:
        return Check("bad", "slurm", unanswered[0], "scontrol ping  # tell the site what it says")
    version = slurm.config.get("SLURM_VERSION", "unknown")
    names = ", ".join(slurm.partitions)
    found = f"{version}; partitions {names}; {slurm.num_hosts} hosts in the largest"
    return Check("ok", "slurm", found)


def munge(answer: Output | None, auth: str, slurm_answers: bool) -> Check:
    """Say whether this host can prove to Slurm who asks.

    Args:
        auth: Slurm's AuthType; empty where it did not say.
        slurm_answers: whether a question was answered, which takes a proof too.
    """
    if answer is None or (auth and auth != "auth/munge"):
        return Check("skipped", "munge", f"Slurm takes {auth or 'nobody knows what'} here")
    if answer.ok:
        return Check("ok", "munge", "`munge -n` makes a credential")
    if answer.missing and slurm_answers:
        found = "munge is not on PATH, yet Slurm answers: its library is there"
        return Check("ok", "munge", found)
    if answer.missing:
        fix = "apt-get install munge  # with the cluster's /etc/munge/munge.key, by the site"
        return Check("bad", "munge", f"{answer.problem}, and Slurm does not answer", fix)
    return Check("bad", "munge", answer.problem, "systemctl restart munge  # by the site")


def settings(slurm: Slurm, partition: str | None) -> Iterator[Check]:
    """Yield what fitb.cluster.slurm_config finds in the settings, with what to type."""
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
    """Say whether hosts of the partition can hold what the job asks of each.

    Args:
        hosts: of all partitions.
        partition: of the job.
    """
    name = "job shape"
    mine = [one for one in hosts if one.partition == partition]
    if not mine:
        return Check("skipped", name, f"sinfo shows no hosts of partition {partition}")
    wanted = f"{request.tasks} tasks x {request.cpus} CPUs and {request.gpus} GPUs on each of"
    wanted += f" {request.nodes} hosts"
    most = max(mine, key=lambda one: (one.gpus, one.cpus))
    tasks = min(request.tasks, most.gpus) if most.gpus else max(1, min(request.tasks, most.cpus))
    gpus = min(request.gpus, most.gpus)
    cpus = max(1, min(request.cpus, most.cpus // max(1, tasks)))
    total = sum(one.number for one in mine)
    fix = f"sbatch --nodes={min(request.nodes, total)} --ntasks-per-node={tasks}"
    fix += f" --gpus-per-node={gpus} --cpus-per-task={cpus} slurm/distill.sh ..."
    fits = [o for o in mine if o.gpus >= request.gpus and o.cpus >= request.tasks * request.cpus]
    if sum(one.number for one in fits) < request.nodes:
        have = f"partition {partition} has {total} hosts, the largest with {most.cpus} CPUs and"
        others = sorted({o.partition for o in hosts if o.gpus >= request.gpus > most.gpus})
        also = f"; GPUs are in {', '.join(others)}" if others else ""
        found = f"the job asks for {wanted}; {have} {most.gpus} GPUs{also}: it never starts"
        return Check("bad", name, found, fix)
    if request.gpus and request.tasks != request.gpus:
        found = f"{wanted}: fitb takes one task per GPU"
        fix = f"sbatch --ntasks-per-node={request.gpus} --gpus-per-node={request.gpus} ..."
        return Check("bad" if request.tasks > request.gpus else "warn", name, found, fix)
    if not request.gpus and most.gpus:
        found = f"{wanted}, whose {most.gpus} GPUs stay idle"
        fix = f"sbatch --gpus-per-node={most.gpus} --ntasks-per-node={most.gpus} ..."
        return Check("warn", name, found, fix)
    return Check("ok", name, f"{wanted} of partition {partition}")


def environment(env: Mapping[str, str], version: str) -> Iterator[Check]:
    """Yield variables that undo what slurm/distill.sh does.

    Args:
        version: of Slurm.
    """
    undone = []
    inside = env.get("SLURM_JOB_ID")
    if inside:
        yield Check(
            "warn",
            "job environment",
            f"this shell is inside job {inside}, whose SLURM_ variables sbatch hands on",
            "exit  # and submit from the login shell",
        )
    if "SBATCH_NO_REQUEUE" in env:
        undone.append(
            ("SBATCH_NO_REQUEUE", "SBATCH_NO_REQUEUE: a preempted job does not come back")
        )
    signal = env.get("SBATCH_SIGNAL", "B:USR1")
    if not signal.startswith("B:"):
        text = f"SBATCH_SIGNAL={signal}: in place of B:USR1@300, so the script is not told"
        undone.append(("SBATCH_SIGNAL", text))
    if env.get("SBATCH_OPEN_MODE", "append").startswith("t"):
        undone.append(("SBATCH_OPEN_MODE", "SBATCH_OPEN_MODE: a restart empties the job's log"))
    if env.get("OMP_NUM_THREADS"):
        text = f"OMP_NUM_THREADS={env['OMP_NUM_THREADS']}: wins over --cpus-per-task"
        undone.append(("OMP_NUM_THREADS", text))
    if "SRUN_CPUS_PER_TASK" in env and "SLURM_JOB_ID" not in env:
        text = "SRUN_CPUS_PER_TASK: in a job without --cpus-per-task, srun takes it for its tasks"
        undone.append(("SRUN_CPUS_PER_TASK", text))
    for name, text in dict(undone).items():
        yield Check("warn", "job environment", text, f"unset {name}")
    if not undone and not inside:
        found = f"nothing undoes slurm/distill.sh, which hands --cpus-per-task on (Slurm {version})"
        yield Check("ok", "job environment", found)


def script_text() -> str:
    """Return distill.sh as `fitb scripts` finds it; empty where it does not."""
    script = find_script()
    return script.read_text() if script else ""


def look(slurm: Slurm, options: Sequence[str], request: JobRequest) -> Iterator[Check]:
    """Yield everything about Slurm; one line where there is none.

    Args:
        options: of sbatch.
        request: what the job asks for under them.
    """
    yield presence(slurm)
    if not slurm.there:
        return
    auth = slurm.config.get("AuthType", "")
    yield munge(slurm.answers.get("munge"), auth, bool(slurm.config))
    script = script_text()
    yield from settings(slurm, request.partition)
    partition = slurm.partition(request.partition)
    if not script:
        found = "slurm/distill.sh is neither here nor with the package"
        yield Check("skipped", "job shape", found)
    elif partition:
        yield shape(request, slurm.hosts, partition)
    yield from timing(script, options, os.environ)
    yield from environment(os.environ, slurm.config.get("SLURM_VERSION", "unknown"))
