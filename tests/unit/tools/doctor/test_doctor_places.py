"""What the doctor makes of folders, of the host and its way to W&B, and of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitb.base.wandb_login import Login
from fitb.cluster.process import Output
from fitb.config import CheckpointConfig, Config, Geometry, ModelConfig
from fitb.tools.doctor import configuration, folders, host
from fitb.tools.doctor.folders import Folder
from fitb.tools.doctor.job_request import JobRequest

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


GB = 10**9


@pytest.mark.parametrize(
    ("check", "status", "value"),
    [
        (folders.shared("run_dir", Folder("/r", "xfs", 1, 1), 1), "ok", "xfs"),
        (folders.shared("run_dir", Folder("/r", "lustre", 1, 1), 9), "ok", "lustre"),
        (folders.shared("run_dir", Folder("/r", "xfs", 1, 1), 9), "warn", "xfs"),
        (folders.clock(Folder("/r", "nfs", 1, 1, "", -0.2)), "ok", "/r"),
        (folders.clock(Folder("/r", "nfs", 1, 1, "", 70.0)), "warn", "70 s"),
        (folders.clock(Folder("/r", "nfs", 1, 1)), "skipped", ""),
    ],
)
def test_a_folder_is_to_be_seen_by_all_hosts_at_the_time_of_this_one(check, status, value):
    assert check.status == status and value in check.found
    assert (status == "warn") == bool(check.fix)


@pytest.mark.parametrize(
    ("folder", "bad"),
    [
        (Folder("/r", "nfs", 3 * GB, None), {}),
        (Folder("/r", "nfs", GB, 10**6), {"run_dir space": "1.00 GB free, expected 2.00"}),
        (Folder("/r", "nfs", 3 * GB, 7), {"run_dir inodes": "7 inodes free"}),
        (Folder("/r", "nfs", 3 * GB, None, "Read-only"), {"run_dir writable": "Read-only"}),
    ],
)
def test_room_is_held_against_what_a_run_writes(folder, bad):
    checks = folders.room("run_dir", folder, 2e9, "checkpoints", "--run_dir /other")
    found = {check.name: check.found for check in checks if check.status == "bad"}
    assert found.keys() == bad.keys()
    assert all(bad[name] in found[name] for name in bad)


def test_libraries_write_where_their_variables_say():
    env = {"XDG_CACHE_HOME": "/c", "HF_HOME": "/hf", "TMPDIR": "/t"}
    found = folders.cache_paths(env | {"USER": "me"})
    assert found["HF_HOME"] == "/hf"
    assert found["TORCH_EXTENSIONS_DIR"] == "/c/torch_extensions"
    assert found["TRITON_CACHE_DIR"] == f"{Path.home()}/.triton/cache"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/t/torchinductor_me"


QUOTA = """\
Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home {used}  9000000 10000000 {grace}  1200   90000  100000
"""


@pytest.mark.parametrize(
    ("used", "grace", "status", "found"),
    [
        ("1000000", "", "warn", "1.0 of 10.2 GB"),
        ("10000000*", "none", "bad", "10.2 of 10.2 GB"),
    ],
)
def test_quotas_of_a_home_name_the_variables_to_set(used, grace, status, found):
    answer = Output(QUOTA.format(used=used, grace=grace), "`quota -w` ended with 1: ")
    (check,) = folders.quota(answer, ["HF_HOME", "TRITON_CACHE_DIR"], "$SCRATCH")
    assert check.status == status and found in check.found
    assert check.fix == "export HF_HOME=$SCRATCH/hf_home TRITON_CACHE_DIR=$SCRATCH/triton_cache_dir"
    holds_no_caches = Output(QUOTA.format(used="1000000", grace=""))
    for answer, status in ((holds_no_caches, "ok"), (Output("", "x", missing=True), "skipped")):
        assert [check.status for check in folders.quota(answer, [], "/r")] == [status]


# -- the host and W&B


MISLED = "a is 127.0.1.1 on a itself; export GLOO_SOCKET_IFNAME=eth0 for the job"


@pytest.mark.parametrize(
    ("check", "status", "fix"),
    [
        (host.open_files(1024, 1 << 20), "ok", ""),
        (host.open_files(1024, 1024), "warn", "hard nofile"),
        (host.open_files(-1, -1), "ok", ""),
        (host.locked_memory(65536, has_infiniband=False), "ok", ""),
        (host.locked_memory(65536, has_infiniband=True), "warn", "ulimit -l unlimited"),
        (host.locked_memory(-1, has_infiniband=True), "ok", ""),
        (host.hostname("a", None, 2), "ok", ""),
        (host.hostname("a", MISLED, 1), "ok", ""),
        (host.hostname("a", MISLED, 2), "warn", "GLOO_SOCKET_IFNAME=eth0"),
        (host.hub({}, ()), "ok", ""),
        (host.hub({"HF_HUB_OFFLINE": "1"}, ("org/bert",)), "ok", ""),
        (host.hub({"HF_HUB_OFFLINE": "0"}, ("org/bert",)), "warn", "--local-dir models/bert"),
        (host.wandb_server("offline", "api.wandb.ai", ""), "ok", ""),
        (host.wandb_server("online", "api.wandb.ai", None), "ok", ""),
        (host.wandb_server("online", "api.wandb.ai", "refused"), "warn", "fitb sync RUN"),
    ],
)
def test_what_the_host_lacks_matters_where_something_needs_it(check, status, fix):
    assert check.status == status
    assert fix in check.fix and bool(fix) == bool(check.fix)


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


# -- the configuration


def test_a_typing_error_in_a_flag_is_a_line_with_the_nearest_key():
    config, (check,) = configuration.read(["--optim.lrr", "1"])
    assert config is None
    assert "nearest: optim.lr" in check.found and check.fix.startswith("`fitb doctor")


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
