"""Score models at the masked positions of a batch; the MLM head runs at these positions only.

Rows longer than the training length are read in windows around their masked positions.

Legend: K masked positions of a row, M of a batch, D hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from fitb.evaluation.row_counts import Scores
from fitb.infer.windows import Window, windows_of
from fitb.model.encoder import encode
from fitb.model.load import mlm_head
from fitb.model.positions import trained_length

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

    from fitb.infer.onnx import OnnxScorer

_HEAD_POSITIONS = 2048  # through the head at a time; (2048, 30522) in fp32 is 250 MB


class Predictor(Protocol):
    """A model that predicts masked tokens, in two steps so that the head can run in blocks."""

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the inputs of the head at the masked positions, (M, D), in row-major order."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits at some of those positions, (m, V) fp32."""


class Bert:
    """A BERT with its MLM head, on its device and in its precision."""

    def __init__(self, model: BertForMaskedLM) -> None:
        self.model = model

    def hidden(self, batch: Batch) -> torch.Tensor:
        batch = cut_rows(batch, trained_length(self.model.config))
        batch = batch.to(next(self.model.parameters()).device)
        used = batch.labels != IGNORE_INDEX
        states = encode(self.model, batch.input_ids, batch.real()).last
        row = torch.arange(len(used), device=used.device)[:, None].expand_as(used)[used]
        return states[row, batch.slots[used]]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return mlm_head(self.model)(hidden).float()  # type: ignore[no-any-return]


class Onnx:
    """A model in onnxruntime, whose graph takes a batch and its masked positions at once.

    Its `hidden` returns flat indices of the masked positions, (M,) int64, in place of states.
    """

    def __init__(self, scorer: OnnxScorer) -> None:
        self._scorer = scorer
        self._batch: Batch | None = None

    def hidden(self, batch: Batch) -> torch.Tensor:
        self._batch = batch = cut_rows(batch, self._scorer.max_length)
        return (batch.labels != IGNORE_INDEX).flatten().nonzero()[:, 0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._batch is not None
        batch = self._batch
        slots = torch.full_like(batch.slots.flatten(), -1)
        slots[hidden] = batch.slots.flatten()[hidden]
        mask = batch.attention_mask.long().numpy()
        slots = slots.view_as(batch.slots)
        return torch.from_numpy(self._scorer.run(batch.input_ids.numpy(), mask, slots.numpy()))


class Unigram:
    """Add-one smoothed token frequencies, independent of the context.

    Args:
        counts: (V,) int64, counts of ordinary tokens in training rows.
        device: device of the logits.
    """

    def __init__(self, counts: NDArray[np.int64], device: torch.device) -> None:
        smoothed = torch.from_numpy(counts.astype(np.float64)) + 1
        self._logits = (smoothed / smoothed.sum()).log().float().to(device)

    def hidden(self, batch: Batch) -> torch.Tensor:
        num_slots = int((batch.labels != IGNORE_INDEX).sum())
        return torch.empty((num_slots, 0), device=self._logits.device)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits.expand(len(hidden), -1)


def cut_rows(batch: Batch, most: int) -> Batch:
    """Split rows of more than `most` tokens into windows around their masked positions.

    Each window becomes a row; masked positions keep their order. A batch without longer rows is
    returned unchanged.
    """
    if batch.input_ids.shape[1] <= most:
        return batch
    used = batch.labels != IGNORE_INDEX
    num_tokens = batch.attention_mask.sum(1).tolist()
    cut: list[tuple[int, Window]] = []
    for i, places in enumerate(batch.slots):
        asked = places[used[i]].tolist()
        cut += [(i, window) for window in windows_of(num_tokens[i], asked, most) if asked]
    cut = cut or [(0, Window(0, most, ()))]  # at least one row
    row = torch.tensor([i for i, _ in cut])
    begin = torch.tensor([window.begin for _, window in cut])
    ids, real = (
        whole[row[:, None], begin[:, None] + torch.arange(most)]
        for whole in (batch.input_ids, batch.attention_mask)
    )
    length = torch.tensor(num_tokens)[row]
    ids[:, 0] = batch.input_ids[row, 0]
    inside = begin + most < length
    ids[inside, -1] = batch.input_ids[row, length - 1][inside]
    shape = (len(cut), max(1, *(len(window.numbers) for _, window in cut)))
    slots, words = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    labels = torch.full(shape, IGNORE_INDEX)
    for n, (i, window) in enumerate(cut):
        mine, (at,) = slice(len(window.numbers)), used[i].nonzero(as_tuple=True)
        at = at[list(window.numbers)]
        slots[n, mine] = batch.slots[i, at] - window.begin
        labels[n, mine], words[n, mine] = batch.labels[i, at], batch.slot_words[i, at]
    return Batch(ids, real, slots, labels, words, padded=not bool(real.all()), rows=batch.rows)


def score(
    predictors: Mapping[str, Predictor],
    batch: Batch,
    *,
    judged: bool = True,
    teacher: str | None = None,
    seconds: dict[str, float] | None = None,
) -> dict[str, Scores]:
    """Score every model at the masked positions of a batch.

    Args:
        predictors: models by name.
        batch: masked rows.
        judged: whether predictions and their probabilities are wanted.
        teacher: name of the model with which the others are compared.
        seconds: wall-clock seconds of each model are added here.
    """
    order = sorted(predictors, key=lambda name: name != teacher)
    clock = {} if seconds is None else seconds
    labels = batch.labels[batch.labels != IGNORE_INDEX]
    hidden = {}
    for name in order:
        with _timed(clock, name):
            hidden[name] = predictors[name].hidden(batch)
    parts: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in predictors}
    for begin in range(0, max(1, len(labels)), _HEAD_POSITIONS):
        block = slice(begin, begin + _HEAD_POSITIONS)
        taught: tuple[torch.Tensor, torch.Tensor] | None = None
        for name in order:
            with _timed(clock, name):
                logits = predictors[name].logits(hidden[name][block])
                true = labels[block].to(logits.device)
                found = _scores(logits, true, judged, taught)
            if name == teacher:
                taught = (logits.log_softmax(dim=1), found["predicted"])
                found = _scores(logits, true, judged, taught)
            parts[name].append(found)
    return {
        name: Scores(**{key: torch.cat([part[key] for part in found]).numpy() for key in found[0]})
        for name, found in parts.items()
    }


def _scores(
    logits: torch.Tensor,
    true: torch.Tensor,
    judged: bool,
    taught: tuple[torch.Tensor, torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """Return the fields of Scores, on the CPU, from logits (m, V) and true tokens (m,)."""
    loss = F.cross_entropy(logits, true, reduction="none").double()
    at_true = logits.gather(1, true[:, None])
    # V + 1 - the number of tokens with no greater logit, so that NaN counts as wrong
    rank = logits.shape[1] + 1 - (logits <= at_true).sum(dim=1)
    found = {"loss": loss, "rank": rank}
    if judged:
        top, first = logits.max(dim=1)
        found["predicted"] = torch.where(rank <= 1, true, first)
        # log p(prediction) = its logit - log of the sum = its logit - that of the true one - loss
        found["confidence"] = ((top - at_true[:, 0]).double() - loss).exp().clamp(max=1)
    if judged and taught is not None:
        theirs, answers = (each.to(logits.device) for each in taught)
        found["agreed"] = found["predicted"] == answers
        ours = logits.log_softmax(dim=1)
        found["kl"] = (theirs.exp() * (theirs - ours)).sum(dim=1, dtype=torch.float64)
    return {name: value.cpu() for name, value in found.items()}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and restore its training flag afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
