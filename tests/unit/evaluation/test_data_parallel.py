"""Where rank 0 is; how work is dealt to real processes is in tests/integration."""

import pytest

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.cluster.slurm import master_port
from fitb.evaluation.data_parallel import _address


def test_the_address_is_what_is_set_or_follows_from_the_step():
    second = World(1, 2, 0)
    assert _address({"MASTER_ADDR": "a", "MASTER_PORT": "7"}, second) == ("a", 7)
    step = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_STEP_NODELIST": "h[4-5]"}
    assert _address(step, second) == ("h4", master_port(12, 3))
    other = {**step, "SLURM_STEP_ID": "4"}
    assert _address(other, second) != _address(step, second)


def test_ranks_without_an_address_are_told_so():
    with pytest.raises(ConfigError, match="rank 1 of 2 .*slurm/evaluate.sh"):
        _address({}, World(1, 2, 0))
