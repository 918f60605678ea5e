"""Document numbers of the positions of rows, derived from the ids and the first document.

Dimensions: B rows, L length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_DOCUMENTS = 2**40  # upper bound of the documents in a shard


def documents_at(
    input_ids: NDArray[np.int64], first: NDArray[np.int64], *, sep_id: int, pad_id: int
) -> NDArray[np.int64]:
    """Return the document number of each position: (B, L) int64, -1 at special tokens.

    A row is `[CLS] document [SEP] document [SEP] ... [PAD]`, and its documents are consecutive.

    Args:
        input_ids: (B, L) int64, unmasked.
        first: (B,) int64, number of the first document of each row.
        sep_id: id of [SEP].
        pad_id: id of [PAD].
    """
    is_special = (input_ids == sep_id) | (input_ids == pad_id)
    is_special[:, 0] = True
    return np.where(is_special, -1, first[:, None] + np.cumsum(input_ids == sep_id, axis=1))
