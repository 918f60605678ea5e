"""Files of DeepSpeed as the world writes them: used, or refused with the key."""

import json

import pytest

from fitb.base.errors import ConfigError
from fitb.config.ds_config import OWNED, read_ds_config

ZERO2 = {"zero_optimization": {"stage": 2}}


def written(folder, content):
    path = folder / "mine.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("key", [*OWNED, "fp16", "bf16", "steps_per_print"])
def test_auto_leaves_a_number_to_fitb(tmp_path, key):
    """A file for the Hugging Face Trainer ended in a TypeError of DeepSpeed's."""
    assert read_ds_config(written(tmp_path, {**ZERO2, key: "auto"})) == ZERO2


@pytest.mark.parametrize("key", ["fp16", "bf16"])
def test_a_precision_that_is_enabled_auto_is_fitbs_to_choose(tmp_path, key):
    content = {**ZERO2, key: {"enabled": "auto", "loss_scale_window": 100}}
    assert read_ds_config(written(tmp_path, content)) == content
    content[key]["enabled"] = True
    with pytest.raises(ConfigError, match=rf"sets {key}\.enabled"):
        read_ds_config(written(tmp_path, content))


@pytest.mark.parametrize(
    ("zero", "named"),
    [
        ("auto", "stage=None"),
        ([], r"zero_optimization=\[\]"),
        ({}, "stage=None"),
        ({"stage": 0}, "stage=0"),
        ({"stage": 4}, "stage=4"),
        ({"stage": "2"}, "stage='2'"),
        ({"stage": "auto"}, "stage='auto'"),
        ({"stage": True}, "stage=True"),
        ({"stage": 2, "cpu_offload": True}, r"cpu_offload.*offload_optimizer"),
        ({"stage": 3, "cpu_offload_param": True}, r"cpu_offload_param.*offload_param"),
        ({"stage": 2, "cpu_offload_use_pin_memory": True}, r"pin_memory"),
    ],
)
def test_what_deepspeed_would_fail_at_is_refused_with_the_key(tmp_path, zero, named):
    with pytest.raises(ConfigError, match=named) as refused:
        read_ds_config(written(tmp_path, {"zero_optimization": zero}))
    assert not refused.value.restart_helps
