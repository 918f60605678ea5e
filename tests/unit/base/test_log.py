"""Who speaks, at which level, with which name."""

import logging

import pytest

from fitb.base import log


@pytest.mark.parametrize(("rank", "heard"), [(0, ["one", "two"]), (3, ["two"])])
def test_the_first_rank_informs_and_the_others_only_warn(capsys, rank, heard):
    for _ in range(2):  # which does not say everything twice
        log.setup(rank)
    logging.getLogger("fitb.training.loop").info("one")
    logging.getLogger("fitb.training.loop").warning("two")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == heard
    assert all(f"[rank {rank}]" in line for line in lines)
    assert captured.out == ""
