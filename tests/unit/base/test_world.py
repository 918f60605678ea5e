"""Ranks from the environments of torchrun, Slurm and nothing."""

import pytest

from fitb import cli
from fitb.base.errors import ConfigError
from fitb.base.world import World, address_of, job_id, without_local_rank

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("env", "world"),
    [
        (TORCHRUN, World(rank=3, size=8, local_rank=1)),
        (SLURM, World(rank=5, size=6, local_rank=2)),
        (SLURM | TORCHRUN, World(rank=3, size=8, local_rank=1)),
        ({"HOME": "/root", "SLURM_JOB_ID": "1"}, World(rank=0, size=1, local_rank=0)),
    ],
)
def test_torchrun_is_believed_before_slurm_and_without_both_a_process_is_alone(env, world):
    assert World.from_env(env) == world
    assert world.is_main == (world.rank == 0)


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_and_an_interactive_shell_of_a_job_of_four_tasks_are_alone(step):
    """`fitb evaluate` waited six hours there for three others that nobody had started."""
    job = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}
    assert World.from_env(job | step) == World()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (TORCHRUN | {"RANK": "many"}, "must be integers"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "must be integers"),
        (TORCHRUN | {"RANK": "8"}, "is not below"),
        (TORCHRUN | {"RANK": "-1"}, "is not below"),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "0"}, "is not below"),
        (SLURM | {"SLURM_PROCID": "6"}, "is not below"),
        # Half an environment does not make every process the main one.
        *(({n: v for n, v in TORCHRUN.items() if n != gone}, gone) for gone in TORCHRUN),
    ],
)
def test_ranks_that_are_none_or_contradict_each_other_are_refused(env, said):
    with pytest.raises(ConfigError, match=said):
        World.from_env(env)


@pytest.mark.parametrize(
    "flag", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"], []]
)
def test_the_flag_that_deepspeeds_launcher_appends_is_no_flag_of_ours(flag):
    flags = ["--steps", "3", *flag, "--seed=1"]
    assert without_local_rank(flags, TORCHRUN) == ["--steps", "3", "--seed=1"]


@pytest.mark.parametrize("flag", ["--local_rank=0", "--local-rank=", "--local_rank"])
@pytest.mark.parametrize("env", [TORCHRUN, {}])
def test_a_local_rank_that_is_not_that_of_the_environment_is_refused(flag, env):
    with pytest.raises(ConfigError, match="--no_local_rank"):
        without_local_rank([flag], env)


def test_a_task_of_an_array_has_a_name_of_its_own():
    array = {"SLURM_JOB_ID": "4", "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "1"}
    assert [job_id(array), job_id({"SLURM_JOB_ID": "4"}), job_id({})] == ["4_1", "4", ""]


def test_a_site_says_what_comes_behind_the_names_of_hosts():
    assert address_of("n1", {}) == "n1"
    assert address_of("n1", {"FITB_HOST_SUFFIX": "i"}) == "n1i"


def test_what_is_handed_to_torch_reads_back_as_the_same_place():
    world = World(rank=2, size=4, local_rank=0)
    env = world.env("10.0.0.1", 1234)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.1", "1234")
    assert World.from_env(env) == world


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--local_rank=1", "train"], 93),
        (["train", "--local_rank=1"], 93),
        (["--local_rank=1", "fill", "train"], 2),
        (["fill", "train", "--no-such"], 2),
    ],
)
def test_a_start_that_does_not_help_again_is_told_to_who_trains_alone(words, code, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.main(words) == code
