"""Which layers of a teacher a student learns from."""

import pytest

from fitb.base.errors import ConfigError
from fitb.model.layer_map import resolve


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "expected"),
    [
        (4, 12, (3, 6, 9, 12)),
        (6, 12, (2, 4, 6, 8, 10, 12)),
        (12, 12, tuple(range(1, 13))),
    ],
)
def test_a_uniform_map_is_that_of_the_paper(num_student, num_teacher, expected):
    assert resolve("uniform", num_student, num_teacher) == expected


def test_a_uniform_map_always_climbs_to_the_last_layer():
    for num_teacher in range(1, 25):
        for num_student in range(1, num_teacher + 1):
            layers = resolve("uniform", num_student, num_teacher)
            assert len(layers) == num_student
            assert list(layers) == sorted(set(layers))
            assert layers[0] >= 1 and layers[-1] == num_teacher


@pytest.mark.parametrize("given", [[4, 1], [2, 2], (3, 1)])
def test_a_given_map_is_taken_as_it_is(given):
    assert resolve(given, 2, 4) == tuple(given)


@pytest.mark.parametrize(
    ("given", "num_student", "said"),
    [
        *[(given, 2, "from 1 to 4") for given in ([], [1], [1, 2, 3], [0, 4], [1, 5])],
        ("uniform", 6, "4 < 6 layers"),
    ],
)
def test_a_map_that_no_student_can_follow_is_refused(given, num_student, said):
    with pytest.raises(ConfigError, match=said):
        resolve(given, num_student, 4)
