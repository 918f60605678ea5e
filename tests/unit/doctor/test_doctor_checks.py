"""What the doctor makes of strings and numbers, without the things themselves."""

from __future__ import annotations

import configparser
import sys
import time
from pathlib import Path

import pytest

from fitb.config import CheckpointConfig, Config, Geometry, ModelConfig
from fitb.doctor import configuration, folders, gpu, host, python, slurm
from fitb.doctor.ask import Answer, ask, together
from fitb.doctor.check import Check, as_json, exit_code, hidden, render, secrets_of
from fitb.doctor.folders import Folder
from fitb.doctor.gpu import Build, Driver
from fitb.doctor.slurm import Asked, Hosts

ROOT = Path(__file__).resolve().parents[3]
H100 = ("NVIDIA H100 80GB HBM3",) * 8


def one(checks):
    (found,) = checks
    return found


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        (["ok", "skipped"], 0),
        (["ok", "warn", "skipped"], 1),
        (["warn", "bad", "ok"], 2),
    ],
)
def test_the_worst_line_decides_the_exit_code_and_what_is_skipped_is_fine(statuses, code):
    assert exit_code(Check(status, "x", "y") for status in statuses) == code


def test_a_page_has_one_line_per_check_and_json_the_same_fields():
    checks = [Check("ok", "a", "fine"), Check("bad", "longer", "broken", "mend it")]
    lines = render(checks).splitlines()
    assert lines[1].split() == ["bad", "longer", "broken", "|", "fix:", "mend", "it"]
    assert lines[2] == "1 ok, 0 skipped, 0 warn, 1 bad" and len(lines) == 3
    assert as_json(checks)[1] == {
        "status": "bad",
        "name": "longer",
        "found": "broken",
        "fix": "mend it",
    }


def test_secrets_of_the_environment_and_of_urls_leave_no_trace():
    env = {"WANDB_API_KEY": "0123456789abcdef", "HF_TOKEN": "hf_abcdefgh", "KEYBOARD": "qwertz"}
    said = "0123456789abcdef at\nhttps://me:pass@host/x, hf_abcdefgh, qwertz"
    shown = hidden(Check("bad", "a", said, said), secrets_of(env))
    assert shown.found == shown.fix == "*** at https://***@host/x, ***, qwertz"


def test_a_short_value_of_a_secret_takes_no_words_out_of_the_page():
    assert secrets_of({"SOME_TOKEN": "no", "PATH": "/usr/bin/elsewhere"}) == []


# -- commands


def test_a_command_that_sleeps_is_ended_together_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    answer = ask("/bin/sh", "-c", f"sleep 60 & echo $! > {pid}; wait", timeout_s=1.0)
    assert answer.problem.endswith("gave no answer in 1 s")
    child = Path("/proc", pid.read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while child.exists() and ") Z " not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or ") Z " in child.read_text()


def test_a_command_that_is_missing_or_fails_says_so():
    assert ask("no-such-command-here").missing
    failed = ask("/bin/sh", "-c", "echo half; echo why >&2; exit 3")
    assert (failed.output, failed.ok) == ("half\n", False)
    assert failed.problem.endswith("ended with 3: why")


def test_calls_that_are_late_or_raise_leave_the_others_alone():
    import threading

    never = threading.Event()

    def broken():
        raise ValueError("no")

    found = together({"late": never.wait, "broken": broken, "good": lambda: 7}, 0.3)
    assert found["good"] == 7
    assert isinstance(found["late"], TimeoutError) and isinstance(found["broken"], ValueError)
    never.set()


# -- packages


def test_all_packages_that_are_wrong_are_told_with_one_command():
    held = {"a": "1.0", "b": "2.0", "d": python.UNREADABLE}
    lines = ["a>=2", "b>=1,<3", "c[x]>=4", "d", 'e; extra == "dev"', 'f; python_version < "3"']
    check = python.requirements(lines, held.get)
    assert check.status == "bad"
    assert check.found == "3 of 4: a 1.0, expected >=2, c is missing, d has damaged metadata"
    words = "-m pip install --ignore-installed 'a>=2' 'c[x]>=4' d"
    assert check.fix == f"{sys.executable} {words}"


def test_packages_in_range_are_counted_local_versions_included():
    check = python.requirements(["torch>=2.10", "x"], {"torch": "2.13.0+cpu", "x": "1"}.get)
    assert check == Check("ok", "packages", "2 installed and in range")


def test_a_python_out_of_range_is_bad():
    assert python.python_version("3.11.2", ">=3.10").status == "ok"
    check = python.python_version("3.9.18", ">=3.10")
    assert check.status == "bad" and "make install PYTHON=" in check.fix


def test_batch_scripts_that_start_another_python_are_told(tmp_path):
    assert python.interpreter("/v/bin/python3", "/v/bin/python", named=False).status == "ok"
    other = python.interpreter("/v/bin/python3", "/usr/bin/python", named=False)
    assert (other.status, other.fix) == ("warn", "export FITB_PYTHON=/v/bin/python3")
    named = python.interpreter("/v/bin/python3", "/w/bin/python", named=True)
    assert (named.status, named.fix) == ("warn", "/w/bin/python -m fitb doctor")
    assert python.interpreter("/v/bin/python3", None, named=False).status == "bad"


def test_missing_compilers_are_two_lines():
    assert [c.status for c in python.compilers("/usr/bin/c++", "/usr/bin/ninja")] == ["ok", "ok"]
    assert [c.name for c in python.compilers(None, None) if c.status == "bad"] == [
        "compiler",
        "ninja",
    ]


def test_requirements_that_the_doctor_repeats_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    assert gpu._TORCH in lines
    assert "transformers>=5.17,<6" in lines  # of fitb.doctor.models


# -- torch and the driver

VERSION_PY = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
__version__ = '2.13.0+{local}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'cf30153c'
hip: Optional[str] = None
"""
SMI = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""


def test_the_build_of_torch_is_read_without_running_it():
    assert gpu.parse_build(VERSION_PY.format(local="cpu", cuda="None")) == Build(
        "2.13.0+cpu", None, None
    )
    assert gpu.parse_build(VERSION_PY.format(local="cu126", cuda="'12.6'")).cuda == "12.6"


def test_the_driver_is_read_from_two_pages_of_nvidia_smi():
    names = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-2)\n"
    expected = Driver("550.54.15", "12.4", ("NVIDIA A100-SXM4-40GB",))
    assert gpu.parse_driver(SMI, names) == expected
    assert gpu.parse_driver(SMI, "") is None


@pytest.mark.parametrize(
    ("cuda", "driver_cuda", "status", "fix"),
    [
        ("13.0", "13.0", "ok", ""),
        ("12.6", "13.0", "ok", ""),
        ("12.6", "12.2", "ok", ""),  # one driver of a major version runs all of its minor ones
        ("12.8", "12.4", "warn", "whl/cu126"),
        ("13.0", "12.8", "bad", "whl/cu126"),
        ("12.6", "11.4", "bad", "driver 525 or newer"),
        (None, "13.1", "bad", "whl/cu130"),
        (None, "12.2", "bad", "whl/cu126"),
    ],
)
def test_torch_is_held_against_what_the_driver_runs(cuda, driver_cuda, status, fix):
    build, driver = Build("2.13.0", cuda, None), Driver("1.2", driver_cuda, H100)
    check = gpu.torch_and_driver(build, driver, 0)
    assert check.status == status
    assert fix in check.fix and bool(check.fix) == bool(fix)
    assert "8 x NVIDIA H100" in check.found


def test_a_login_node_without_a_gpu_is_fine_unless_its_hosts_have_some():
    cpu, cuda = Build("2.13.0+cpu", None, None), Build("2.13.0+cu130", "13.0", None)
    assert gpu.torch_and_driver(cpu, None, 0).status == "ok"
    assert gpu.torch_and_driver(cuda, None, 8).status == "ok"
    check = gpu.torch_and_driver(cpu, None, 8)
    assert check.status == "warn" and "whl/cu130" in check.fix
    assert gpu.torch_and_driver(None, None, 8).status == "skipped"


def test_a_driver_that_does_not_answer_is_told():
    assert gpu.smi_check(Answer("", "nvidia-smi is not on PATH", missing=True), False) is None
    late = Answer("", "`nvidia-smi` gave no answer in 4 s")
    broken = Answer("", "`nvidia-smi` ended with 9: couldn't communicate with the NVIDIA driver")
    found = [gpu.smi_check(a, there) for a in (late, broken) for there in (False, True)]
    assert [check and check.status for check in found] == ["warn", "bad", "ok", "bad"]


# -- Slurm


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:2(S:0),gpu:v100:1(S:1),tmp:100", 3),
        ("shard:8,gpu:h100:4", 4),
        ("gpu", 1),
    ],
)
def test_gpus_are_counted_in_generic_resources(gres, number):
    assert slurm.num_gpus(gres) == number


def test_what_a_job_asks_for_is_read_as_sbatch_reads_it():
    script = (ROOT / "slurm" / "distill.sh").read_text()
    assert slurm.asked_of(script, [], {}) == Asked(2, 4, 4, 4, None)
    env = {"SBATCH_PARTITION": "low", "SBATCH_GPUS_PER_NODE": "h100:8"}
    assert slurm.asked_of(script, ["--nodes", "3-5"], env) == Asked(3, 4, 8, 4, "low")
    options = ["-N1", "--gpus-per-node=0", "-p", "x", "--exclusive"]
    assert slurm.asked_of(script, options, env) == Asked(1, 4, 0, 4, "x")


@pytest.mark.parametrize(
    ("asked", "hosts", "status", "found", "fix"),
    [
        (Asked(2, 4, 4, 4), [Hosts("p", 2, 16, 4)], "ok", "partition p", ""),
        (Asked(2, 4, 4, 4), [Hosts("p", 4, 64, 2)], "bad", "2 GPUs: it never", "--gpus-per-node=2"),
        (Asked(3, 4, 4, 4), [Hosts("p", 2, 64, 4)], "bad", "has 2 hosts", "--nodes=2"),
        (Asked(2, 4, 4, 8), [Hosts("p", 2, 16, 4)], "bad", "16 CPUs", "--cpus-per-task=4"),
        (Asked(2, 8, 4, 1), [Hosts("p", 2, 16, 4)], "bad", "one task per", "--ntasks-per-node=4"),
        (Asked(2, 2, 4, 1), [Hosts("p", 2, 16, 4)], "warn", "one task per", "--ntasks-per-node=4"),
        (Asked(1, 4, 0, 1), [Hosts("p", 2, 16, 4)], "warn", "stay idle", "--gpus-per-node=4"),
        (
            Asked(1, 4, 4, 1),
            [Hosts("p", 2, 16, 0), Hosts("fast", 2, 16, 4)],
            "bad",
            "GPUs are in fast",
            "--gpus-per-node=0",
        ),
        (Asked(), [], "skipped", "no hosts", ""),
    ],
)
def test_a_job_is_held_against_the_hosts_of_its_partition(asked, hosts, status, found, fix):
    check = slurm.shape(asked, hosts, "p")
    assert (check.status, bool(check.fix)) == (status, bool(fix))
    assert found in check.found and fix in check.fix


def test_hosts_are_read_from_sinfo():
    text = "gpu|4|64+|gpu:h100:4(S:0-1)\nlow|10|32|(null)\nnoise\n"
    assert list(slurm.parse_hosts(text)) == [Hosts("gpu", 4, 64, 4), Hosts("low", 10, 32, 0)]


@pytest.mark.parametrize(
    ("env", "variable"),
    [
        ({"SBATCH_EXPORT": "NONE"}, "SBATCH_EXPORT"),
        ({"SLURM_EXPORT_ENV": "HOME,PATH"}, "SLURM_EXPORT_ENV"),
        ({"SBATCH_NO_REQUEUE": "1"}, "SBATCH_NO_REQUEUE"),
        ({"SBATCH_SIGNAL": "USR1@60"}, "SBATCH_SIGNAL"),
        ({"OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS"),
        ({"SRUN_CPUS_PER_TASK": "1"}, "SRUN_CPUS_PER_TASK"),
        ({"SBATCH_OPEN_MODE": "truncate"}, "SBATCH_OPEN_MODE"),
    ],
)
def test_a_variable_that_undoes_the_batch_script_is_told(env, variable):
    check = one(slurm.environment(env, "24.05"))
    assert (check.status, check.fix) == ("warn", f"unset {variable}")


def test_an_environment_that_undoes_nothing_is_fine():
    env = {"SBATCH_EXPORT": "ALL,X=1", "SBATCH_SIGNAL": "B:USR1@600", "SLURM_JOB_ID": "1"}
    assert one(slurm.environment(env, "24.05")).status == "ok"


def test_munge_is_judged_together_with_what_slurm_answers():
    missing = Answer("", "munge is not on PATH", missing=True)
    assert slurm.munge(Answer("MUNGE:..."), "auth/munge", True).status == "ok"
    assert slurm.munge(missing, "auth/munge", True).status == "ok"
    assert slurm.munge(missing, "auth/slurm", True).status == "skipped"
    assert "apt-get install munge" in slurm.munge(missing, "", False).fix
    broken = slurm.munge(Answer("", "`munge -n` ended with 6: no socket"), "auth/munge", True)
    assert (broken.status, broken.fix) == ("bad", "systemctl restart munge  # by the site")


HARSH = {
    "JobRequeue": "0",
    "KillWait": "5 sec",
    "PreemptMode": "CANCEL",
    "PreemptType": "preempt/qos",
    "ProctrackType": "proctrack/pgid",
    "RequeueExit": "80-95",
    "RequeueExitHold": "93",
}


@pytest.mark.parametrize("mode", ["CANCEL", "SUSPEND,GANG", "REQUEUE"])
def test_every_setting_that_is_found_wanting_comes_with_something_of_its_own_to_type(mode):
    partition = {"PartitionName": "p", "Default": "YES", "GraceTime": "0", "PreemptMode": mode}
    cluster = slurm.Slurm((), HARSH, {"p": partition})
    found = {c.name: c for c in slurm.settings(cluster, None) if c.status != "ok"}
    names = {"JobRequeue", "KillWait", "GraceTime", "PreemptType", "ProctrackType", "RequeueExit"}
    assert names <= set(found)
    assert ("PreemptMode" in found) == (mode != "REQUEUE")
    assert all(c.fix and c.fix != "scontrol show config" for c in found.values())


def test_a_partition_that_is_not_there_is_told_with_those_that_are():
    cluster = slurm.Slurm((), HARSH, {"gpu": {"PartitionName": "gpu", "Default": "NO"}})
    assert one(slurm.settings(cluster, "gpus")).status == "bad"
    check = one(slurm.settings(cluster, None))
    assert check.status == "warn" and "--partition=gpu" in check.fix


# -- folders

MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/local\\040disk xfs rw 0 0
mds:/fs /scratch lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data", "overlay"),
        ("/tmp", "tmpfs"),
        ("/tmpfoo", "overlay"),
        ("/home/me/runs", "nfs4"),
        ("/home/local disk/x", "xfs"),
        ("/scratch/a/b", "lustre"),
    ],
)
def test_the_filesystem_of_a_path_is_that_of_the_nearest_mount(path, kind):
    assert folders.filesystem(path, MOUNTS) == kind


def test_a_folder_of_one_host_is_told_only_where_there_are_several():
    local, net = Folder("/r", "xfs", True, 1, 1), Folder("/r", "lustre", True, 1, 1)
    assert folders.shared("run_dir", local, 1).status == "ok"
    assert folders.shared("run_dir", net, 9).status == "ok"
    check = folders.shared("run_dir", local, 9)
    assert check.status == "warn" and "srun --nodes=2 ls -d /r" in check.fix


def test_room_is_held_against_what_a_run_writes():
    def bad(folder):
        checks = folders.room("run_dir", folder, 2e9, "checkpoints", "--run_dir /other")
        return {c.name: c.found for c in checks if c.status == "bad"}

    assert not bad(Folder("/r", "nfs", True, 3 * 10**9, None))
    assert (
        "1.00 GB free, expected 2.00"
        in bad(Folder("/r", "nfs", True, 10**9, 10**6))["run_dir space"]
    )
    assert "run_dir inodes" in bad(Folder("/r", "nfs", True, 3 * 10**9, 7))
    assert (
        "Read-only"
        in bad(Folder("/r", "nfs", True, 3 * 10**9, None, "Read-only"))["run_dir writable"]
    )


def test_libraries_write_where_their_variables_say():
    env = {"XDG_CACHE_HOME": "/c", "HF_HOME": "/hf", "TMPDIR": "/t"}
    found = folders.cache_paths(env, "/home/me", "me")
    assert found["HF_HOME"] == "/hf"
    assert found["TORCH_EXTENSIONS_DIR"] == "/c/torch_extensions"
    assert found["TRITON_CACHE_DIR"] == "/home/me/.triton/cache"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/t/torchinductor_me"


QUOTA = """\
Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home {used}  9000000 10000000 {grace}  1200   90000  100000
"""


@pytest.mark.parametrize(
    ("used", "grace", "status", "found"),
    [
        ("1000000", "", "warn", "caches fill it"),
        ("9500000*", "6days", "warn", "nearly full"),
        ("10000000*", "none", "bad", "nothing more can be written"),
    ],
)
def test_quotas_of_a_home_name_the_variables_to_set(used, grace, status, found):
    answer = Answer(QUOTA.format(used=used, grace=grace), "`quota -w` ended with 1: ")
    check = one(folders.quota(answer, ["HF_HOME", "TRITON_CACHE_DIR"], "$SCRATCH"))
    assert check.status == status and found in check.found
    assert check.fix == "export HF_HOME=$SCRATCH/hf_home TRITON_CACHE_DIR=$SCRATCH/triton_cache_dir"


def test_a_home_that_holds_no_caches_may_have_a_small_quota():
    answer = Answer(QUOTA.format(used="1000000", grace=""))
    assert one(folders.quota(answer, [], "$SCRATCH")).status == "ok"
    assert one(folders.quota(Answer("", "x", missing=True), [], "/r")).status == "skipped"


def test_a_clock_that_differs_from_the_file_servers_is_told():
    assert folders.clock(Folder("/r", "nfs", True, 1, 1, "", -0.2)).status == "ok"
    assert folders.clock(Folder("/r", "nfs", True, 1, 1, "", 70.0)).status == "warn"
    assert folders.clock(Folder("/r", "nfs", True, 1, 1)).status == "skipped"


# -- the host and W&B


def test_limits_matter_where_something_needs_them():
    assert host.open_files(1024, 1 << 20).status == "ok"
    assert host.open_files(1024, 1024).status == "warn"
    assert host.open_files(-1, -1).found == "unlimited"
    assert host.locked_memory(65536, has_infiniband=False).status == "ok"
    assert host.locked_memory(65536, has_infiniband=True).fix == "ulimit -l unlimited"
    assert host.locked_memory(-1, has_infiniband=True).status == "ok"


def test_a_name_of_a_host_must_lead_to_an_address():
    assert host.hostname("a", ["10.0.0.1"]).status == "ok"
    assert host.hostname("a", OSError("unknown")).status == "warn"


def test_a_model_of_the_hub_is_told_unless_the_hub_is_off():
    assert host.hub({}, ()).status == "ok"
    assert host.hub({"HF_HUB_OFFLINE": "1"}, ("org/bert",)).status == "ok"
    check = host.hub({"HF_HUB_OFFLINE": "0"}, ("org/bert",))
    assert check.status == "warn" and "--local-dir models/bert" in check.fix


KEY = {"WANDB_API_KEY": "0123456789"}
CLOUD = "api.wandb.ai"


@pytest.mark.parametrize(
    ("wanted", "env", "logins", "status"),
    [
        ("auto", KEY, {}, "ok"),
        ("auto", {}, {CLOUD: True}, "ok"),
        ("auto", {}, {}, "warn"),
        ("auto", {"WANDB_MODE": "offline"}, {}, "ok"),
        ("auto", {"WANDB_MODE": "dryrun"}, {}, "warn"),
        ("online", {}, {}, "bad"),
        ("offline", {}, {}, "ok"),
        ("disabled", {}, {}, "ok"),
    ],
)
def test_a_key_is_asked_for_where_a_run_will_need_it(wanted, env, logins, status):
    check = host.wandb_key(wanted, env, logins, CLOUD)
    assert check.status == status
    assert (status in ("warn", "bad")) == bool(check.fix)
    assert "0123" not in check.found + check.fix


@pytest.mark.parametrize("wanted", ["auto", "online", "offline", "disabled"])
@pytest.mark.parametrize("env", [{}, KEY, {"WANDB_MODE": "offline"}, KEY | {"WANDB_MODE": "x"}])
@pytest.mark.parametrize("login", [False, True])
def test_the_mode_of_wandb_is_the_one_that_training_takes(
    wanted, env, login, tmp_path, monkeypatch
):
    from fitb.train import track

    monkeypatch.setenv("HOME", str(tmp_path))
    if login:
        (tmp_path / ".netrc").write_text(f"machine {CLOUD} login user password xxxxxxxx\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert host.wandb_mode(wanted, env, login) == track.wandb_mode(wanted, env)
    assert host.logins_of((CLOUD,)) == {CLOUD: login}


def test_a_server_out_of_reach_is_a_warning_and_offline_is_fine():
    assert host.wandb_server("offline", CLOUD, "").status == "ok"
    assert host.wandb_server("online", CLOUD, None).status == "ok"
    check = host.wandb_server("online", CLOUD, "refused")
    assert check.status == "warn" and "fitb sync RUN" in check.fix


# -- the configuration


def test_a_typing_error_in_a_flag_is_a_line_with_the_nearest_key():
    config, checks = configuration.read(["--optim.lrr", "1"])
    assert config is None
    assert "nearest: optim.lr" in one(checks).found and one(checks).fix.startswith("`fitb doctor")


def test_a_batch_that_leaves_processes_without_rows_is_told():
    config = Config("r", global_batch=4, micro_batch=1)
    assert configuration.batch(config, Asked(1, 4)).status == "ok"
    check = configuration.batch(config, Asked(2, 4))
    assert check.status == "bad" and check.fix == "use fewer processes"


def test_the_room_that_a_run_needs_follows_from_its_student_and_its_checkpoints():
    small = Geometry(2, 32, 64, 4)
    models = ModelConfig(teacher=None, student=small)
    few = Config("r", model=models)
    many = Config("r", model=models, checkpoint=CheckpointConfig(keep_last=12))
    (a, why), (b, _) = (configuration.need(config, {}) for config in (few, many))
    embeddings = 4 * 32 * 30_522
    assert b - a == pytest.approx(10 * 3 * (embeddings + 4 * 32 * 512), rel=0.1)
    assert why.startswith("4 checkpoints of")
    assert configuration.need(None, {})[0] > a


def test_sizes_of_a_student_in_a_folder_are_those_of_its_config(tmp_path):
    names = '"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64'
    (tmp_path / "config.json").write_text(f'{{{names}, "num_attention_heads": 4}}')
    assert configuration.geometry_of(str(tmp_path)) == Geometry(2, 32, 64, 4)
    assert configuration.geometry_of(str(tmp_path / "no")) is None
