"""Slurm's configuration, judged for a training job: each setting with its effect and a verdict.

Pure functions over the output of `scontrol show config`, `show partition` and `show job`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fitb.base.errors import ConfigError, nearest
from fitb.cluster.slurm import parse_record

Verdict = Literal["ok", "warn", "bad"]
Fields = Mapping[str, str]
DEFAULT_LEAD_S = 60.0  # of `--signal=USR1` without @seconds
_UNITS = {"": 1.0, "sec": 1.0, "min": 60.0, "usec": 1e-6}
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_NO_LIMIT = ("UNLIMITED", "INFINITE", "NONE", "(null)", "N/A", "")


@dataclass(frozen=True)
class Finding:
    """Effect of one setting on a job.

    Args:
        name: Slurm's name of the setting.
        value: value as Slurm prints it.
        verdict: ok; warn: good to know; bad: the job does not come back by itself.
        sentence: effect on a job of slurm/distill.sh, and the remedy.
    """

    name: str
    value: str
    verdict: Verdict
    sentence: str


def parse_config(text: str) -> dict[str, str]:
    """Parse the settings in the output of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if re.match(r"\s*\w+\s+=", line))
    return {name.strip(): value.strip() for name, value in pairs}


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Parse the output of `scontrol show partition`: name -> fields."""
    records = map(parse_record, re.split(r"^(?=PartitionName=)", text, flags=re.MULTILINE))
    return {record["PartitionName"]: record for record in records if "PartitionName" in record}


def choose_partition(partitions: Mapping[str, Fields], name: str | None) -> Fields:
    """Return the named partition, or the default one.

    Args:
        partitions: name -> fields.
        name: partition name as for sbatch; of a list the first counts; None is the default.
    Raises: ConfigError with the known partitions.
    """
    if name:
        first = name.split(",")[0]
        if first in partitions:
            return partitions[first]
        known = ", ".join(partitions)
        message = f"partition {first!r} is not one of {known}{nearest(first, partitions)}"
        raise ConfigError(f"{message}; see `sinfo`")
    default = next((p for p in partitions.values() if p.get("Default") == "YES"), None)
    if default is None:
        raise ConfigError(f"no partition is the default; name one of {', '.join(partitions)}")
    return default


def seconds(text: str) -> float | None:
    """Parse a duration of Slurm ('30 sec', '5 min', '1-02:00:00') to seconds; None is no limit.

    Raises: ConfigError if it is malformed.
    """
    amount = re.fullmatch(r"(\d+)\s*(sec|min|usec|)", text)
    return int(amount[1]) * _UNITS[amount[2]] if amount else limit_s(text)


def limit_s(option: str) -> float | None:
    """Parse sbatch's --time ('90' minutes, '1:30:00', '2-12') to seconds; None is no limit.

    Raises: ConfigError if it is malformed.
    """
    if option in _NO_LIMIT:
        return None
    found = _LIMIT.fullmatch(option)
    if not found:
        raise ConfigError(
            f"{option!r} is no duration of Slurm; expected one as --time takes it: minutes,"
            " HH:MM:SS or DAYS-HH:MM:SS"
        )
    days, *clock = (int(part) if part else None for part in found.groups())
    if days is not None or clock[2] is not None:  # DAYS-HOURS[:MINUTES[:SECONDS]]
        hours, minutes, rest = (part or 0 for part in clock)
    else:  # MINUTES[:SECONDS]
        hours, minutes, rest = 0, clock[0] or 0, clock[1] or 0
    return float(86_400 * (days or 0) + 3600 * hours + 60 * minutes + rest)


def leaves_at_once(time: str | None, signal: str | None) -> str | None:
    """Return an error message if a job would be asked to shut down as soon as it starts, else None.

    Args:
        time: --time of sbatch.
        signal: --signal of sbatch.
    Raises: ConfigError if the time is malformed.
    """
    limit, lead = limit_s(time) if time else None, signal_lead_s(signal)
    if limit is None or lead is None or limit > lead:
        return None
    return (
        f"--time={time} is no longer than the {lead:g} s before its end at which --signal={signal}"
        " asks the job to shut down, so it makes no step;"
        f" ask for more, or for --signal=B:USR1@{limit // 3:.0f}"
    )


def signal_lead_s(option: str | None) -> float | None:
    """Return the lead time of sbatch's --signal in seconds, e.g. 'B:USR1@300'; None without it."""
    if not option:
        return None
    found = re.search(r"@(\d+)$", option)
    return float(found[1]) if found else DEFAULT_LEAD_S


def preempt_mode(config: Fields, partition: Fields) -> str:
    """Return what preemption does to a job of this partition; OFF without preemption."""
    if config.get("PreemptType", "(null)").removeprefix("preempt/") in ("none", "(null)"):
        return "OFF"
    own = partition.get("PreemptMode", "")
    modes = (own or config.get("PreemptMode", "OFF")).split(",")
    return next((mode for mode in modes if mode not in ("GANG", "WITHIN")), "OFF")


def sends_user_signal(config: Fields) -> bool:
    """Return whether a preemption sends the signal of --signal instead of SIGTERM."""
    return "send_user_signal" in config.get("SlurmctldParameters", "") + config.get(
        "PreemptParameters", ""
    )


def preemption_lead_s(config: Fields, partition: Fields) -> tuple[float | None, str]:
    """Return the seconds from the signal of a preemption to SIGKILL, and the setting's name.

    The seconds are None if jobs of this partition are not preempted.
    """
    grace_s = seconds(partition.get("GraceTime", "0")) or 0.0
    kill_wait_s = seconds(config.get("KillWait", "30 sec")) or 0.0
    if preempt_mode(config, partition) == "OFF":
        return None, "no preemption"
    return (grace_s, "GraceTime") if grace_s else (kill_wait_s, "KillWait")


def findings(config: Fields, partition: Fields, job: Fields | None = None) -> list[Finding]:
    """Judge every relevant setting.

    Args:
        config: settings from `parse_config`.
        partition: fields of the job's partition.
        job: fields of the job; None before submission.
    """
    version = config.get("SLURM_VERSION", "unknown")
    found = [Finding("Slurm", version, "ok", "the version that answered")]
    found += [requeue(config, job), *_exit_codes(config), *_preemption(config, partition)]
    short = (seconds(_wait(config)) or 0) < 30
    sentence = "from SIGTERM to SIGKILL at a time limit, a scancel or a preemption without grace"
    found.append(Finding("KillWait", _wait(config), "warn" if short else "ok", sentence))
    found += [_tracking(config), *_limits(config, partition, job)]
    value = config.get("UnkillableStepTimeout", "60 sec")
    sentence = "a host is drained if processes survive SIGKILL this long, as in a dead filesystem"
    return [*found, Finding("UnkillableStepTimeout", value, "ok", sentence)]


def requeue(config: Fields, job: Fields | None) -> Finding:
    """Judge whether this job, or without its record any job, can be requeued."""
    if job and "Requeue" in job:
        if job["Requeue"] == "1":
            sentence = "this job may be requeued, by Slurm and by its own script"
            return Finding("Requeue", "1", "ok", sentence)
        return Finding(
            "Requeue",
            job["Requeue"],
            "bad",
            "`scontrol requeue` is refused for this job, although slurm/distill.sh asks for"
            " --requeue: drop --no-requeue, or ask the site; else submit the same line several"
            " times with --dependency=singleton",
        )
    if config.get("JobRequeue") == "0":
        sentence = "only a job that asks with --requeue comes back; slurm/distill.sh does"
        return Finding("JobRequeue", "0", "warn", sentence)
    value = config.get("JobRequeue", "unknown")
    return Finding("JobRequeue", value, "ok", "a job may be requeued unless it says no")


def _exit_codes(config: Fields) -> Iterator[Finding]:
    for name in ("RequeueExit", "RequeueExitHold"):
        codes = config.get(name, "(null)")
        taken = [code for code in ("85", "93") if code in _expanded(codes)]
        if taken:
            yield Finding(
                name,
                codes,
                "bad",
                f"Slurm itself acts on exit code {' and '.join(taken)}, with which fitb requests or"
                " refuses a requeue: ask the site to remove it",
            )


def _expanded(codes: str) -> set[str]:
    found: set[str] = set()
    for begin, end in re.findall(r"(\d+)(?:-(\d+))?", codes):
        found |= {str(code) for code in range(int(begin), int(end or begin) + 1)}
    return found


def _preemption(config: Fields, partition: Fields) -> Iterator[Finding]:
    mode, grace = preempt_mode(config, partition), partition.get("GraceTime", "0")
    name = partition.get("PartitionName", "?")
    verdict, sentence = _of_mode(mode, graceful=grace != "0")
    yield Finding("PreemptMode", mode, verdict, f"partition {name}: {sentence}")
    if mode == "OFF":
        return
    if config["PreemptType"] == "preempt/qos":
        yield Finding(
            "PreemptType",
            "preempt/qos",
            "warn",
            "mode and grace may be those of the QOS: `sacctmgr show qos"
            " format=name,preemptmode,gracetime`",
        )
    if grace == "0":
        sentence = f"after the signal of a preemption a job has KillWait ({_wait(config)}) to save"
        yield Finding("GraceTime", "0", "warn", sentence)
    else:
        sentence = f"a preempted job has {grace} s from its signal to its end to save and exit"
        yield Finding("GraceTime", f"{grace} s", "ok", sentence)
    told = "the signal of --signal" if sends_user_signal(config) else "SIGTERM, its tasks only"
    value = "on" if sends_user_signal(config) else "off"
    sentence = f"a preempted job with a grace time gets {told}; fitb shuts down on either"
    yield Finding("preempt_send_user_signal", value, "ok", sentence)


def _of_mode(mode: str, graceful: bool) -> tuple[Verdict, str]:
    if mode == "OFF":
        return "ok", "jobs are not preempted"
    if mode == "REQUEUE":
        return "ok", "a preempted job goes back into the queue under its id"
    if mode == "CANCEL" and graceful:
        return "warn", "a preempted job is cancelled unless its script requeues it within GraceTime"
    if mode == "CANCEL":
        return "bad", "a preempted job is cancelled for good: submit the same line again"
    return "warn", "a preempted job is suspended and keeps its memory; nothing is saved"


def _wait(config: Fields) -> str:
    return config.get("KillWait", "30 sec")


def _tracking(config: Fields) -> Finding:
    value = config.get("ProctrackType", "unknown").removeprefix("proctrack/")
    if value == "cgroup":
        return Finding("ProctrackType", value, "ok", "signals reach the tasks and nothing else")
    if value == "linuxproc":
        sentence = "signals reach every process of a task, W&B's too; metrics.jsonl loses nothing"
        return Finding("ProctrackType", value, "warn", sentence)
    sentence = "a process that left its process group outlives its job; look for leftover ranks"
    return Finding("ProctrackType", value, "warn", sentence)


def _limits(config: Fields, partition: Fields, job: Fields | None) -> Iterator[Finding]:
    longest = partition.get("MaxTime", "UNLIMITED")
    limit_s, asked = seconds(longest), (job or {}).get("TimeLimit", "Partition_Limit")
    asked_s = 0.0 if asked == "Partition_Limit" else seconds(asked)
    if limit_s is not None and (asked_s is None or asked_s > limit_s):
        sentence = f"the job asks for {asked} and never starts: lower --time"
        yield Finding("MaxTime", longest, "bad", sentence)
    else:
        yield Finding("MaxTime", longest, "ok", "longest attempt; the next one resumes after it")
    over = partition.get("OverTimeLimit", "NONE")
    over = config.get("OverTimeLimit", "0 min") if over == "NONE" else over
    over += " min" if over.isdigit() else ""
    if over != "0 min":
        sentence = "a job may run this long past its limit; the signal of --signal is not delayed"
        yield Finding("OverTimeLimit", over, "ok", sentence)
    exempt = config.get("PreemptExemptTime", "00:00:00")
    if seconds(exempt):
        yield Finding(
            "PreemptExemptTime", exempt, "ok", "no job is preempted before it has run this long"
        )


def render(found: list[Finding]) -> str:
    """Format one line per setting."""
    return "\n".join(f"  {f.verdict:<5}{f.name}={f.value}: {f.sentence}" for f in found)
