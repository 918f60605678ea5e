"""Learning rates and the DeepSpeed configuration, without DeepSpeed."""

import json
import math

import pytest
import torch

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import OptimConfig
from fitb.config.ds_config import OWNED
from fitb.training.engine import learning_rate, parameter_groups
from fitb.training.gradients import GradientSum
from fitb.training.zero import _check_with_deepspeed, deepspeed_config

FILES = {"zero1": 1, "zero2": 2, "zero2_offload": 2, "zero3": 3}


SCHEDULES = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 50, 51, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_warms_up_in_a_straight_line_and_follows_its_schedule(
    schedule, warmup_steps
):
    config = OptimConfig(lr=0.5, warmup_steps=warmup_steps, schedule=schedule)
    warm = [0.5 * (step + 1) / warmup_steps for step in range(warmup_steps)]
    left = max(1, 50 - warmup_steps)
    falls = [0.5 * SCHEDULES[schedule](min(1, step / left)) for step in range(52)]
    rates = [learning_rate(step, 50, config) for step in range(52)]
    assert rates[:50] == pytest.approx((warm + falls)[:50], abs=1e-6)
    assert all(0 <= rate <= 0.5 for rate in rates)


@pytest.mark.parametrize(("name", "stage"), FILES.items())
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_file_of_ours_is_filled_with_what_fitb_owns(run_config, name, stage, precision):
    config = run_config(
        ds_config=name, precision=precision, global_batch=48, micro_batch=4,
        optim=OptimConfig(clip_norm=0.25),
    )  # fmt: skip
    filled = deepspeed_config(config, World(rank=1, size=3))
    assert filled["train_micro_batch_size_per_gpu"] == 4
    ours = not filled["zero_optimization"].get("compute_grad_norm", True)
    assert filled["gradient_clipping"] == (0.0 if ours else 0.25)
    assert filled["gradient_accumulation_steps"] == (1 if ours else 4)
    assert ours == (name == "zero2" or (name == "zero1" and precision != "bf16"))
    assert filled["fp16"]["enabled"] == (precision == "fp16")
    assert filled["bf16"]["enabled"] == (precision == "bf16")
    assert "auto" not in json.dumps(filled)
    assert filled["zero_optimization"]["stage"] == stage
    assert ("offload_optimizer" in filled["zero_optimization"]) == (name == "zero2_offload")
    assert filled["fp16"]["initial_scale_power"] == 16
    assert filled["fp16"]["min_loss_scale"] == 1
    assert filled["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((json.dumps({key: 1}), rf"sets {key}, which fitb owns") for key in OWNED),
        ('{"zero_optimization": {"stage": 2, "compute_grad_norm": true}}', "compute_grad_norm"),
        ('{"optimizer": {}, "fp16": {"enabled": true}}', r"optimizer, fp16\.enabled"),  # at once
        *((text, "mine.json") for text in ("{", "[1]", '"zero2"', '{"fp16": true}', "\xff")),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}}', "reduce_bucket"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}', "offload"),
    ],
)
def test_a_file_is_refused_with_the_key_that_fitb_owns_or_deepspeed_does_not_take(
    run_config, tmp_path, text, said
):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=said):
        _check_with_deepspeed(run_config(ds_config=str(path)), World())


def test_a_name_that_is_not_there_names_the_nearest(run_config):
    with pytest.raises(ConfigError, match=r"nearest: zero3\)"):
        deepspeed_config(run_config(ds_config="zer03"), World())


def test_a_process_without_a_row_is_refused_before_deepspeed_sees_it(run_config):
    with pytest.raises(ConfigError, match="global_batch=4 over 5 processes"):
        deepspeed_config(run_config(global_batch=4, micro_batch=4), World(0, 5))


def test_matrices_decay_and_biases_and_norms_do_not():
    module = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
    )
    module[0].weight.requires_grad_(False)
    decayed, rest = parameter_groups(module, 0.3)
    assert decayed["weight_decay"] == 0.3
    assert rest["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module[1].weight)]
    assert {id(p) for p in rest["params"]} == {
        id(module[1].bias), id(module[2].weight), id(module[2].bias)
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sum_keeps_what_many_micro_batches_add_to_a_large_one(dtype):
    """256 gradients of 1/512 after one of 1: in bf16 not one of them would move the sum."""
    used, unused = (torch.nn.Parameter(torch.ones(2, dtype=dtype)) for _ in range(2))
    gradients = GradientSum([used, unused])
    for step in range(2):
        sum_up(gradients, used, first=1.0 + step)
        assert used.grad.dtype == dtype
        assert used.grad.tolist() == [1.5 + step, 1.5 + step]
        assert unused.grad is None


def sum_up(gradients, used, first):
    with gradients.of_micro_batches(257) as add:
        for micro_batch in range(257):
            used.grad = torch.full_like(used, first if micro_batch == 0 else 1 / 512)
            add()
            assert used.grad is None


def test_one_micro_batch_keeps_its_gradients_and_more_are_added_in_buffers_made_once():
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    gradients, made = GradientSum(parameters), None
    alone = torch.full_like(parameters[0], 7)
    with gradients.of_micro_batches(1) as add:
        parameters[0].grad = alone
        add()
    assert parameters[0].grad is alone and parameters[1].grad is None
    for values in ([1, 2], [3, 4, 5]):
        with gradients.of_micro_batches(len(values)) as add:
            for value in values:
                parameters[0].grad = gradient = torch.full_like(parameters[0], value)
                add()
                gradient.fill_(torch.nan)  # its memory is used again
        assert parameters[0].grad.tolist() == [sum(values)] * 3
        buffers = [*gradients._sums, *gradients._addends]
        assert [buffer.dtype for buffer in buffers] == [torch.float32] * 2
        assert made is None or all(a is b for a, b in zip(buffers, made, strict=True))
        made = buffers
