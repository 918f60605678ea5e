"""Which document a position lies in, against a walk over the row."""

import numpy as np

from fitb.shards.documents import documents_at

PAD, CLS, SEP = 0, 2, 3


def walked(row, first):
    """The document of each position, token by token; a run of [SEP] closes a row."""
    found, number = [], first
    for place, token in enumerate(row):
        found.append(-1 if place == 0 or token in (SEP, PAD) else number)
        number += token == SEP
    return found


def test_every_position_has_the_document_that_a_walk_finds():
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        row = [CLS]
        while len(row) < 24:
            row += [*draw.integers(4, 9, draw.integers(1, 7)), SEP]
        end = draw.integers(2, 25)
        row = [*row[: end - 1], SEP]
        rows.append(row + [draw.choice((SEP, PAD))] * (24 - len(row)))
    first = draw.integers(0, 2**50, len(rows))
    found = documents_at(np.array(rows), first, sep_id=SEP, pad_id=PAD)
    assert found.tolist() == [walked(*pair) for pair in zip(rows, first.tolist(), strict=True)]
    packed = documents_at(
        np.array([[CLS, 5, SEP, 6, 7, SEP, SEP, SEP]]), np.array([4]), sep_id=SEP, pad_id=PAD
    )
    assert packed.tolist() == [[-1, 4, -1, 5, 5, -1, -1, -1]]
