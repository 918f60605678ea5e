"""Evaluate a model on fixed masks of a split: the encoder once, the MLM head at the slots only.

Legend: B rows, L length, K slots per row, D hidden, V vocabulary, M used slots of a batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from fitb.config import MaskConfig
from fitb.corpus.shards import ShardSet
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.batch import Batch
from fitb.data.held import HeldRows
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows, word_numbers
from fitb.errors import ConfigError
from fitb.evaluate.metrics import METRICS, RowCounts, summarise
from fitb.model.contract import check_contract
from fitb.model.load import encoder, load_model, mlm_head, num_parameters

if TYPE_CHECKING:
    from transformers import BertForMaskedLM


EVALUATION_EPOCH = 2**31 - 1  # part of the key of evaluation masks: no training epoch has it
_HEAD_POSITIONS = 2048  # through the head at a time: (2048, 30522) fp32 is 250 MB


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a model on fixed masks.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head.
        shards: folder that `fitb prepare` wrote, or its URL.
        split: of the shards.
        rows: rows used, spread evenly over the split; 0 means all.
        batch: rows per forward pass.
        seed: of the masks and of the bootstrap.
        mask: how rows are masked.
        json: print JSON.
    """

    model: str
    shards: str = "data/shards"
    split: str = "validation"
    rows: int = 0
    batch: int = 64
    seed: int = 0
    mask: MaskConfig = field(default_factory=MaskConfig)
    json: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ConfigError(f"rows={self.rows}; at least 0, where 0 means all")
        if self.batch < 1:
            raise ConfigError(f"batch={self.batch}; at least 1")


def choose_rows(num_rows: int, wanted: int) -> NDArray[np.int64]:
    """Return `wanted` row numbers spread evenly over 0 .. num_rows - 1, all of them for 0."""
    count = min(wanted, num_rows) if wanted else num_rows
    return np.arange(count, dtype=np.int64) * num_rows // max(1, count)


def count(
    model: BertForMaskedLM,
    shards: ShardSet | HeldRows,
    rows: NDArray[np.int64],
    *,
    vocabulary: Vocabulary,
    mask: MaskConfig,
    seed: int = 0,
    batch_rows: int = 64,
) -> RowCounts:
    """Count what a model gets right in some rows of a split, on masks fixed by `seed`.

    A row's masks depend on its number alone, so any share of the rows may be counted anywhere and
    the counts added. Runs where the model lies, in its precision; logits are taken in fp32. The
    model is in eval mode meanwhile and keeps its training flags.

    Args:
        rows: (N,) int64, row numbers in the split; may be empty.
        vocabulary: of the shards' tokenizer.
        seed: of the masks.
        batch_rows: rows per forward pass.
    """
    parts = [_nothing()]
    device = next(model.parameters()).device
    with _evaluating(model), torch.no_grad():
        for begin in range(0, len(rows), batch_rows):
            chosen = rows[begin : begin + batch_rows]
            read = shards.read(chosen)
            masked = mask_rows(
                read.input_ids,
                read.word_starts,
                chosen,
                np.full(len(chosen), EVALUATION_EPOCH),
                seed=seed,
                vocabulary=vocabulary,
                config=mask,
            )
            batch = Batch.of(masked)
            loss, rank = _score(model, batch.to(device))
            words = word_numbers(read.input_ids, read.word_starts, vocabulary)
            parts.append(_count_rows(chosen, batch, words, loss, rank))
    return RowCounts.joined(parts)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a model folder.

    Returns: JSON-able: `metrics` (value, low, high of each), and all that they depend on.
    Raises: ContractError where the model does not fit the shards or has no trained MLM head.
    """
    shards = ShardSet.open(config.shards, config.split)
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    loaded = load_model(config.model, tokenizer=tokenizer, length=shards.length)
    check_contract(
        tokenizer=tokenizer, manifest=shards.manifest, student=loaded, needs_student_head=True
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(loaded.model, device)
    rows = choose_rows(shards.num_rows, config.rows)
    begin = time.perf_counter()
    counts = count(
        loaded.model,
        shards,
        rows,
        vocabulary=Vocabulary.of(tokenizer),
        mask=config.mask,
        seed=config.seed,
        batch_rows=config.batch,
    )
    elapsed_s = time.perf_counter() - begin
    intervals = summarise(counts, seed=config.seed)
    return {
        "model": config.model,
        "num_parameters": num_parameters(loaded.model),
        "shards": config.shards,
        "fingerprint": shards.fingerprint,
        "split": config.split,
        "mask": asdict(config.mask),
        "seed": config.seed,
        "num_rows": len(rows),
        "num_slots": int(counts.num_slots.sum()),
        "num_words": int(counts.num_words.sum()),
        "metrics": {name: asdict(interval) for name, interval in intervals.items()},
        "tokens_per_s": len(rows) * shards.length / elapsed_s,
    }


def render(result: dict[str, Any]) -> str:
    """Render a result of `evaluate` for people: numbers beside what they depend on."""
    mask = result["mask"]
    lines = [
        f"{result['model']}: {result['num_parameters']:,} parameters",
        f"{result['split']} split of {result['shards']} ({result['fingerprint'][:12]}):"
        f" {result['num_rows']:,} rows, {result['num_slots']:,} slots,"
        f" {result['num_words']:,} whole words",
        f"masks: {mask['strategy']}, {mask['fraction']:.0%} of tokens, seed {result['seed']};"
        f" {result['tokens_per_s']:,.0f} tokens/s",
        "",
        f"{'':10}{'value':>10}   95 % interval",
    ]
    for name in METRICS:
        value, low, high = (result["metrics"][name][key] for key in ("value", "low", "high"))
        lines.append(f"{name:10}{value:10.4f}   {low:.4f} .. {high:.4f}")
    return "\n".join(lines)


def _score(model: BertForMaskedLM, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(M,) loss in nats and (M,) rank of the true token, slots in row-major order.

    A rank is V + 1 minus the number of tokens with no greater logit, so that NaN loses.
    """
    used = batch.labels != IGNORE_INDEX
    hidden = encoder(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    row = torch.arange(len(used), device=used.device)[:, None].expand_as(used)[used]
    at_slots, labels = hidden[row, batch.slots[used]], batch.labels[used]
    losses, ranks = [], []
    for some, true in zip(
        torch.split(at_slots, _HEAD_POSITIONS), torch.split(labels, _HEAD_POSITIONS), strict=True
    ):
        logits = mlm_head(model)(some).float()
        losses.append(F.cross_entropy(logits, true, reduction="none").double())
        no_greater = (logits <= logits.gather(1, true[:, None])).sum(dim=1)
        ranks.append(logits.shape[1] + 1 - no_greater)
    return torch.cat(losses).cpu().numpy(), torch.cat(ranks).cpu().numpy()


def _count_rows(
    rows: NDArray[np.int64],
    batch: Batch,
    words: NDArray[np.int64],
    loss: NDArray[np.float64],
    rank: NDArray[np.int64],
) -> RowCounts:
    """Sum a batch's slots by row, and its whole words: those all of whose tokens are slots."""
    num_rows, length = words.shape
    used = batch.labels.numpy() != IGNORE_INDEX
    row = np.broadcast_to(np.arange(num_rows)[:, None], used.shape)[used]
    of_slot = row * length + batch.slot_words.numpy()[used]
    of_token = (np.arange(num_rows)[:, None] * length + words)[words >= 0]

    def by_word(which: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(which, minlength=num_rows * length).reshape(num_rows, length)

    def by_row(which: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(row[which], minlength=num_rows)

    num_masked = by_word(of_slot)
    whole = (num_masked > 0) & (num_masked == by_word(of_token))
    right = whole & (by_word(of_slot[rank > 1]) == 0)
    return RowCounts(
        rows=rows,
        loss_sum=np.bincount(row, weights=loss, minlength=num_rows).astype(np.float64),
        num_slots=used.sum(axis=1),
        top1=by_row(rank <= 1),
        top5=by_row(rank <= 5),
        num_words=whole.sum(axis=1),
        words_right=right.sum(axis=1),
    )


def _nothing() -> RowCounts:
    whole = np.zeros(0, dtype=np.int64)
    return RowCounts(whole, np.zeros(0), whole, whole, whole, whole, whole)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module into eval mode and give each its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
