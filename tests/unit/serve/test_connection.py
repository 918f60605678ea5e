"""Places for connections: who is let in, and who has to leave for it."""

import pytest

pytest.importorskip("uvicorn")
from fitb.serve.connection import Places

LOCAL, NEAR, FAR = "127.0.0.1", "192.0.2.1", "198.51.100.7"


class Connection:
    """One that takes a place, waits for a request, and leaves when it is told to."""

    def __init__(self, places, address, waits=True):
        self.places, self.address, self.is_closed = places, address, False
        self.has_place = places.take(address)
        if self.has_place and waits:
            places.wait(self, address)

    def give_way(self):
        self.is_closed = True
        self.places.leave(self, self.address)


def test_who_comes_when_all_places_are_taken_gets_that_of_the_one_that_waits_longest():
    places = Places(4, 4)
    first, busy, *others = [Connection(places, LOCAL, waits=number != 1) for number in range(4)]
    fifth = Connection(places, LOCAL)
    assert fifth.has_place and first.is_closed
    places.wait(others[0], LOCAL)  # it has sent a request, and waits anew
    assert Connection(places, LOCAL).has_place and others[1].is_closed
    assert not busy.is_closed and not others[0].is_closed


def test_an_address_that_holds_most_places_loses_one_first():
    places = Places(10, 10)
    mine = Connection(places, FAR)
    theirs = [Connection(places, NEAR) for _ in range(9)]
    newcomers = [Connection(places, LOCAL) for _ in range(4)]
    assert all(one.has_place for one in newcomers) and not mine.is_closed
    assert [one.is_closed for one in theirs] == [True] * 4 + [False] * 5


def test_nobody_is_let_in_where_all_are_at_work():
    places = Places(2, 2)
    working = [Connection(places, LOCAL, waits=False) for _ in range(2)]
    assert not Connection(places, LOCAL).has_place
    working[0].give_way()
    assert Connection(places, LOCAL).has_place


def test_one_address_has_fewer_places_than_all_but_a_proxy_on_loopback_has_not():
    places = Places(100, 3)
    near = [Connection(places, NEAR) for _ in range(5)]
    assert [one.is_closed for one in near] == [True, True, False, False, False]
    assert not any(Connection(places, LOCAL).is_closed for _ in range(20))
    working = [Connection(places, FAR, waits=False) for _ in range(4)]
    assert [one.has_place for one in working] == [True, True, True, False]
