"""What the doctor makes of folders, of the host and its way to W&B, and of a configuration."""

from __future__ import annotations

import pytest
from checking import one

from fitb.cluster.process import Output
from fitb.config import CheckpointConfig, Config, Geometry, ModelConfig
from fitb.doctor import configuration, folders, host
from fitb.doctor.folders import Folder
from fitb.doctor.job_request import JobRequest
from fitb.wandb_login import Login

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
    answer = Output(QUOTA.format(used=used, grace=grace), "`quota -w` ended with 1: ")
    check = one(folders.quota(answer, ["HF_HOME", "TRITON_CACHE_DIR"], "$SCRATCH"))
    assert check.status == status and found in check.found
    assert check.fix == "export HF_HOME=$SCRATCH/hf_home TRITON_CACHE_DIR=$SCRATCH/triton_cache_dir"


def test_a_home_that_holds_no_caches_may_have_a_small_quota():
    answer = Output(QUOTA.format(used="1000000", grace=""))
    assert one(folders.quota(answer, [], "$SCRATCH")).status == "ok"
    assert one(folders.quota(Output("", "x", missing=True), [], "/r")).status == "skipped"


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
    why = "a is 127.0.1.1 on a itself; export GLOO_SOCKET_IFNAME=eth0 for the job"
    assert [host.hostname("a", None, n).status for n in (1, 2)] == ["ok", "ok"]
    assert [host.hostname("a", why, n).status for n in (1, 2)] == ["ok", "warn"]
    assert "GLOO_SOCKET_IFNAME=eth0" in host.hostname("a", why, 2).fix


def test_a_model_of_the_hub_is_told_unless_the_hub_is_off():
    assert host.hub({}, ()).status == "ok"
    assert host.hub({"HF_HUB_OFFLINE": "1"}, ("org/bert",)).status == "ok"
    check = host.hub({"HF_HUB_OFFLINE": "0"}, ("org/bert",))
    assert check.status == "warn" and "--local-dir models/bert" in check.fix


CLOUD = "api.wandb.ai"


@pytest.mark.parametrize(
    ("wanted", "mode", "key", "status"),
    [
        ("auto", "", "WANDB_API_KEY", "ok"),
        ("auto", "", "netrc", "ok"),
        ("auto", "", "", "warn"),
        ("auto", "offline", "", "ok"),
        ("auto", "dryrun", "", "warn"),
        ("online", "", "", "bad"),
        ("offline", "", "", "ok"),
        ("disabled", "", "", "ok"),
    ],
)
def test_a_key_is_asked_for_where_a_run_will_need_it(wanted, mode, key, status):
    check = host.wandb_key(wanted, Login("https://wandb.example.org", mode, key))
    assert check.status == status
    assert (status in ("warn", "bad")) == bool(check.fix)
    assert ("--host https://wandb.example.org" in check.fix) == (not mode and bool(check.fix))


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
    assert configuration.batch(config, JobRequest(1, 4)).status == "ok"
    check = configuration.batch(config, JobRequest(2, 4))
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
