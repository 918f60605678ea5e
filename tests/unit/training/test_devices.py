"""Each rank computes on a GPU of its own, however Slurm binds them, or the job stops in words."""

import os
from types import SimpleNamespace

import pytest
import torch

from fitb.base.errors import UnfitMachine
from fitb.base.world import World
from fitb.training import devices
from fitb.training.devices import (
    bind,
    check_not_shared,
    compile_threads,
    device_index,
    first_shared,
    num_promised,
    prepare_environment,
)


class Accelerator:
    """DeepSpeed's, of a process that sees some GPUs."""

    def __init__(self, num_gpus):
        self.num_gpus, self.current = num_gpus, None

    def device_name(self):
        return "cuda"

    def device_count(self):
        return self.num_gpus

    def set_device(self, index):
        if index >= self.num_gpus:
            raise torch.AcceleratorError("invalid device ordinal")
        self.current = index


def test_a_task_that_sees_only_its_own_gpu_takes_it_and_so_does_deepspeed():
    for local_rank in range(8):
        env, own, all_of_host = {}, Accelerator(1), Accelerator(8)
        bind(World(local_rank, 8, local_rank), own, env)
        assert (own.current, env["LOCAL_RANK"]) == (0, "0")
        bind(World(local_rank, 8, local_rank), all_of_host, env)
        assert (all_of_host.current, env["LOCAL_RANK"]) == (local_rank, str(local_rank))


def test_more_tasks_than_gpus_stop_the_job_with_the_remedy():
    with pytest.raises(UnfitMachine) as raised:
        device_index(World(3, 8, 3), 2)
    assert not raised.value.restart_helps
    for said in ("rank 3", "sees 2 GPUs", "SLURM_GPU_BIND=none", "--ntasks-per-node"):
        assert said in str(raised.value)


@pytest.mark.parametrize("visible", ["MIG-1f2e", "GPU-aa,GPU-bb", "0,GPU-bb"])
def test_named_gpus_are_not_looked_up_by_number(monkeypatch, visible):
    from deepspeed.accelerator import cuda_accelerator

    monkeypatch.setattr(cuda_accelerator, "pynvml", object())
    env = {"CUDA_VISIBLE_DEVICES": visible}
    bind(World(), Accelerator(1), env)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda i: SimpleNamespace(total_memory=7)
    )
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda i: 2)
    accelerator = object.__new__(cuda_accelerator.CUDA_Accelerator)
    assert accelerator.available_memory(0) == 5


def test_numbered_gpus_are_left_to_nvml(monkeypatch):
    from deepspeed.accelerator import cuda_accelerator

    nvml = object()
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    for env in ({}, {"CUDA_VISIBLE_DEVICES": "2, 3"}):
        bind(World(), Accelerator(1), env)
        assert cuda_accelerator.pynvml is nvml


def test_two_ranks_on_one_gpu_are_refused_on_every_rank(monkeypatch):
    owners = [("h1", "a"), ("h1", "b"), ("h2", "a"), ("h2", "a")]
    assert first_shared(owners) == (2, 3) and first_shared(owners[:3]) is None
    closed = []
    monkeypatch.setattr(devices.dist, "new_group", lambda backend: backend)
    monkeypatch.setattr(devices.dist, "destroy_process_group", closed.append)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="a")
    )
    monkeypatch.setattr(devices, "on_all", lambda action, world, group: [("h1", "a"), action()])
    monkeypatch.setattr(devices.socket, "gethostname", lambda: "h1")
    with pytest.raises(UnfitMachine, match="ranks 0 and 1 .* GPU, a of h1.*--ntasks-per-node"):
        check_not_shared(World(1, 2, 1), torch.device("cuda", 0))
    assert closed == ["gloo"]
    monkeypatch.setattr(devices.socket, "gethostname", lambda: "h2")
    check_not_shared(World(1, 2, 0), torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("env", "promised"),
    [
        ({}, 0),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "3"}, 1),  # --gpus-per-task=1
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 2),
        ({"SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0, 1,-1,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_the_gpus_that_a_task_should_see_are_those_that_slurm_shows_it(env, promised):
    assert num_promised(env) == promised


@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({"SLURM_CPUS_PER_TASK": "12"}, 12),
        ({"SLURM_CPUS_PER_TASK": "96"}, 32),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4),3"}, 16),
        ({"LOCAL_WORLD_SIZE": "4"}, 32),
        ({"LOCAL_WORLD_SIZE": "500"}, 1),
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "128"}, 16),  # torchrun is the task
    ],
)
def test_the_compilers_of_all_ranks_of_a_host_share_its_cores(monkeypatch, env, threads):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: range(128))
    assert compile_threads(env) == threads


def test_hangs_are_left_to_the_watch_unless_a_user_wants_nccls_own_monitor():
    env, asked = {}, {"TORCH_NCCL_ENABLE_MONITORING": "1"}
    prepare_environment(env)
    prepare_environment(asked)
    assert (
        env["TORCH_NCCL_ENABLE_MONITORING"] == "0" and asked["TORCH_NCCL_ENABLE_MONITORING"] == "1"
    )


def test_cublas_is_told_of_deterministic_runs_only():
    env = {}
    prepare_environment(env)
    assert "CUBLAS_WORKSPACE_CONFIG" not in env
    prepare_environment(env, deterministic=True)
    assert env["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
