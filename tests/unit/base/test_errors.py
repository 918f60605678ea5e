"""Exit codes and the helpers of the exception tree."""

import pytest

from fitb.base import errors
from fitb.base.errors import ContractError, FitbError, nearest


@pytest.mark.parametrize(
    ("name", "code", "restart_helps"),
    [
        ("FitbError", 1, False),
        ("ConfigError", 2, False),
        ("DataError", 3, False),
        ("ContractError", 3, False),
        ("SystemFault", 4, True),
        ("TrainingError", 5, False),
        ("CheckpointError", 5, False),
    ],
)
def test_each_branch_of_the_tree_has_the_exit_code_of_its_table(name, code, restart_helps):
    kind = getattr(errors, name)
    assert issubclass(kind, FitbError)
    assert (kind.exit_code, kind.restart_helps) == (code, restart_helps)


def test_the_codes_that_a_scheduler_reads_are_the_documented_ones():
    assert (errors.FINISHED, errors.CRASH, errors.RESUME, errors.STOP) == (0, 1, 85, 93)


def test_a_contract_error_tells_every_failure_at_once():
    error = ContractError(iter(["the vocabularies differ", "the teacher has no head"]))
    assert error.failures == ["the vocabularies differ", "the teacher has no head"]
    assert str(error) == "the vocabularies differ; the teacher has no head"


def test_nearest_names_the_likest_name_and_nothing_where_none_is_like_it():
    assert nearest("optim.lrr", ["optim.lr", "steps", "mask.fraction"]) == " (nearest: optim.lr)"
    assert nearest("zzzzzz", ["optim.lr", "steps"]) == ""
    assert nearest("steps", []) == ""
