"""Who speaks, at which level, with which name."""

import logging

import pytest

from fitb.base import log


@pytest.mark.parametrize(("rank", "heard"), [(0, ["one", "two"]), (3, ["two"])])
def test_the_first_rank_informs_and_the_others_only_warn(capsys, rank, heard):
    log.setup(rank)
    logging.getLogger("fitb.training.loop").info("one")
    logging.getLogger("fitb.training.loop").warning("two")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == heard
    assert all(f"[rank {rank}]" in line for line in lines)
    assert captured.out == ""


def test_setting_up_twice_does_not_say_everything_twice(capsys):
    log.setup(0)
    log.setup(0)
    logging.getLogger("fitb").info("once")
    assert capsys.readouterr().err.count("once") == 1
