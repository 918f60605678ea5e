"""Fill blanks written as the mask token, each blank by itself: probabilities over the vocabulary.

Legend: B texts, L length, D hidden, V vocabulary, M blanks of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fitb.corpus.tokenizer import load_tokenizer
from fitb.errors import ConfigError, DataError
from fitb.model.contract import check_contract
from fitb.model.load import encoder, load_model, mlm_head

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, PreTrainedTokenizerBase

_PREFIX = "##"


@dataclass(frozen=True)
class FillConfig:
    """Fill the blanks of sentences.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head; the demo's student.
        texts: sentences with [MASK] where something is missing.
        top_k: candidates per blank.
        json: print JSON.
    """

    model: str = "runs/demo/student/export"
    texts: list[str] = field(default_factory=list)
    top_k: int = 5
    json: bool = False

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k}; at least 1")


@dataclass(frozen=True)
class Candidate:
    """One way to fill a blank.

    Args:
        token: id in the vocabulary.
        text: the piece as the tokenizer writes it; '##' marks one that continues a word.
        probability: softmax over the whole vocabulary.
    """

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text, the candidates of each of its blanks, and the text with the best one in each.

    Args:
        blanks: in the order of the text; candidates by falling probability.
    """

    text: str
    blanks: tuple[tuple[Candidate, ...], ...]
    sentence: str


def fill(
    model: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    top_k: int = 5,
    *,
    batch: int = 32,
) -> list[Filled]:
    """Return the likeliest tokens for every blank of every text.

    Several blanks of one text are filled independently: a probability is that of a token in its
    blank while the others stay open, not a joint one. The model must be in eval mode.

    Args:
        texts: each with at least one mask token.
        top_k: from 1 to the size of the vocabulary.
        batch: texts per forward pass.
    Raises:
        ConfigError: top_k out of its range.
        DataError: a text without a blank, or longer than the model reads.
    """
    if not 1 <= top_k <= len(tokenizer):
        raise ConfigError(f"top_k={top_k}; from 1 to {len(tokenizer)}, the size of the vocabulary")
    filled = []
    for begin in range(0, len(texts), batch):
        filled += _fill_batch(model, tokenizer, list(texts[begin : begin + batch]), top_k, begin)
    return filled


def fill_from(config: FillConfig) -> list[Filled]:
    """Load the model of a configuration and fill its texts.

    Raises: ContractError where the model has no trained MLM head or does not fit its tokenizer.
    """
    tokenizer = load_tokenizer(config.model)
    loaded = load_model(config.model, tokenizer=tokenizer)
    check_contract(tokenizer=tokenizer, manifest=None, student=loaded, needs_student_head=True)
    return fill(loaded.model, tokenizer, config.texts, config.top_k)


def as_json(filled: Sequence[Filled]) -> list[dict[str, Any]]:
    return [asdict(one) for one in filled]


def render(filled: Sequence[Filled]) -> str:
    """Render for people: each filled sentence, then one line per candidate of each blank."""
    lines = []
    for one in filled:
        lines.append(one.sentence)
        for number, candidates in enumerate(one.blanks, start=1):
            if len(one.blanks) > 1:
                lines.append(f"  blank {number}")
            lines += [f"  {found.probability:7.2%}  {found.text}" for found in candidates]
        lines.append("")
    return "\n".join(lines).rstrip()


def _fill_batch(
    model: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    top_k: int,
    first: int,
) -> list[Filled]:
    coded = tokenizer(
        texts,
        padding=True,
        padding_side="right",
        truncation=False,
        return_tensors="pt",
        return_attention_mask=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    is_blank = coded["input_ids"] == tokenizer.mask_token_id  # (B, L)
    _check_texts(model, tokenizer, is_blank, coded["attention_mask"], first)
    device = next(model.parameters()).device
    with torch.inference_mode():
        hidden = encoder(model)(
            input_ids=coded["input_ids"].to(device),
            attention_mask=coded["attention_mask"].to(device),
        )[0]
        logits = mlm_head(model)(hidden[is_blank.to(device)]).float()  # (M, V)
        best = logits.softmax(dim=-1).topk(top_k, dim=-1)
    candidates = [
        tuple(Candidate(t, str(tokenizer.decode([t])), p) for t, p in zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    filled, taken = [], 0
    for text, blank, offsets in zip(texts, is_blank, coded["offset_mapping"], strict=True):
        places = [(int(begin), int(end)) for begin, end in offsets[blank].tolist()]
        mine = tuple(candidates[taken : taken + len(places)])
        taken += len(places)
        words = [found[0].text for found in mine]
        filled.append(Filled(text, mine, _sentence(text, places, words)))
    return filled


def _check_texts(
    model: BertForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    is_blank: torch.Tensor,
    attention_mask: torch.Tensor,
    first: int,
) -> None:
    """Refuse texts by their number: what users write is not repeated in messages."""
    most = model.config.max_position_embeddings
    for number, length in enumerate(attention_mask.sum(dim=1).tolist(), start=first + 1):
        if not is_blank[number - first - 1].any():
            raise DataError(
                f"text {number} has no blank; write {tokenizer.mask_token} where something is"
                " missing"
            )
        if length > most:
            raise DataError(
                f"text {number} has {length} tokens, the model reads at most {most}; shorten it"
            )


def _sentence(text: str, places: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """Put words into a text; one that continues a word joins what is before it."""
    out, previous = "", 0
    for (begin, end), word in zip(places, words, strict=True):
        out += text[previous:begin]
        out = out.rstrip() + word.removeprefix(_PREFIX) if word.startswith(_PREFIX) else out + word
        previous = end
    return out + text[previous:]
