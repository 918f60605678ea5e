"""The attacks of attack_server.py in short: others are answered all the same."""

from __future__ import annotations

import pytest
from attack_server import ATTACKS, attacked
from serving import serving

SECONDS = 1.0
GIVEN_UP = {"TimeoutError"}  # by the attackers, on a slow machine
REFUSED = {"many_keys": {"422"}, "long_candidates": {"422"}, "rebound_names": {"421"}}


@pytest.fixture(scope="module")
def server(teacher, tmp_path_factory):
    flags = ("--read_s", "1", "--deadline_s", "60")
    with serving(tmp_path_factory.mktemp("attacked"), str(teacher), *flags) as served:
        yield served
        assert "Traceback" not in served.log.read_text()
        assert served.stop() == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_another_client_is_answered_while_one_attacks(server, name):
    found = attacked(server, ATTACKS[name], SECONDS, patience_s=1.0)
    assert found.times_s and not found.failures
    assert set(found.attackers) <= REFUSED.get(name, set(found.attackers)) | GIVEN_UP
