"""An ONNX model in the shape of a BERT, so that `fitb.evaluate` counts it like any other.

Legend: B rows, L length, M slots, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

    from fitb.infer.onnx import OnnxScorer


def as_bert(scorer: OnnxScorer) -> BertForMaskedLM:
    """Return something with an encoder and a head, as load.encoder and load.mlm_head take them."""
    return cast("BertForMaskedLM", _Counted(scorer))


class _Counted(torch.nn.Module):
    """The graph wants all at once: a hidden state is the place of its token, and the head runs it.

    Args:
        scorer: asked again for each share of a batch's slots that the head is given.
    """

    def __init__(self, scorer: OnnxScorer) -> None:
        super().__init__()
        self._scorer = scorer
        self._batch: tuple[Any, Any] = (None, None)
        self.where = torch.nn.Parameter(torch.zeros(0))  # it lies on the CPU

    def bert(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, L) -> (B, L, 2) int64: row and position."""
        self._batch = input_ids.numpy(), attention_mask.long().numpy()
        places = (torch.arange(size) for size in input_ids.shape)
        return (torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1),)

    def cls(self, places: torch.Tensor) -> torch.Tensor:
        """(M, 2) -> (M, V)."""
        row, position = places.T.contiguous().numpy()
        return torch.from_numpy(self._scorer.run(*self._batch, row, position))
