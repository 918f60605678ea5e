"""How work is dealt, and where rank 0 is; real processes are in tests/integration."""

import pytest

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.cluster.slurm import master_port
from fitb.evaluation.data_parallel import Ranks, _address, joined


def test_every_piece_goes_to_one_rank():
    for size in (1, 2, 3, 7):
        shares = [Ranks(World(rank, size, rank)).share(10) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(10))
        assert all(i % size == rank for rank, share in enumerate(shares) for i in share)


def test_a_process_alone_gathers_in_order_and_is_given_its_own():
    with joined({}) as ranks:
        assert list(ranks.gathered({2: "b", 0: "a"}).items()) == [(0, "a"), (2, "b")]
        assert ranks.given("value") == "value"


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
