"""Inference with PyTorch, on a GPU or with weights packed for the CPU.

Legend: B rows, L length, K most positions of a row, V vocabulary, M positions asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fitb.base.errors import DataError
from fitb.infer.windows import Rows, in_windows
from fitb.model.encoder import encode
from fitb.model.load import mlm_head
from fitb.model.packed_linear import can_pack, pack
from fitb.model.positions import trained_length

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, PreTrainedTokenizerBase

_PACKED_FROM = 512  # hidden size; with narrower matrices the overhead of oneDNN exceeds its gain


class TorchScorer:
    """A Scorer over PyTorch, on the model's device and in its precision.

    Args:
        model: BERT with its MLM head, in eval mode.
        tokenizer: tokenizer of the model.
    """

    def __init__(self, model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.max_length = trained_length(model.config)
        self._model = model
        self._device = next(model.parameters()).device

    def logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        """See Scorer; the last layer and the head run at these positions only."""
        return in_windows(self._logits, rows, positions, self.max_length)

    def _logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        input_ids, real = padded(rows, self.tokenizer.pad_token_id)
        slots = padded_positions(positions).to(self._device)
        with torch.inference_mode():
            last = encode(
                self._model,
                input_ids.to(self._device),
                None if real is None else real.to(self._device),
                slots=slots.clamp(min=0),
            ).last
            logits: torch.Tensor = mlm_head(self._model)(last[slots >= 0])
            return finite(logits.float().cpu())


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Return logits unchanged; raise DataError if one is NaN or infinite."""
    if not logits.isfinite().all():
        raise DataError(
            "a logit of this model is not finite (NaN or infinity): its weights are not finite, or"
            " too large for its precision; use another checkpoint"
        )
    return logits


def padded(rows: Rows, pad_id: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad rows to (B, L) int64; return them and the (B, L) bool mask, None without padding."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.tensor(rows, dtype=torch.int64), None
    input_ids = torch.tensor(
        [[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=torch.int64
    )
    return input_ids, torch.arange(longest) < torch.tensor(lengths)[:, None]


def padded_positions(positions: Rows) -> torch.Tensor:
    """Return positions as (B, K) int64, padded with -1."""
    most = max(map(len, positions))
    return torch.tensor([[*places, *[-1] * (most - len(places))] for places in positions])


def torch_scorer(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> TorchScorer:
    """Move a model to the GPU if there is one, else pack its weights for the CPU, in place.

    Args:
        model: BERT with its MLM head, in eval mode, fp32.
        tokenizer: tokenizer of the model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    if can_pack(device, torch.float32) and model.config.hidden_size >= _PACKED_FROM:
        pack(model)
    return TorchScorer(model, tokenizer)
