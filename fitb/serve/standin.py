"""Stands in for fitb.infer.fill until it has these names: [MASK] alone, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fitb.errors import DataError
from fitb.infer.request import Answer, Blank, Filled, Filling, FillRequest
from fitb.infer.scorer import Scorer


@dataclass(frozen=True)
class Prepared:
    request: FillRequest
    ids: list[int]
    slots: list[int]
    places: list[tuple[int, int]]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


def prepare(tokenizer: Any, request: FillRequest, max_length: int) -> Prepared:
    text = request.text.replace("___", tokenizer.mask_token)
    coded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids = coded["input_ids"]
    slots = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if not slots:
        raise DataError("the text has no blank; write [MASK], ___ or [SPAN]")
    if len(ids) > max_length:
        raise DataError(f"the text has {len(ids)} tokens, the model reads at most {max_length}")
    return Prepared(request, ids, slots, [coded["offset_mapping"][slot] for slot in slots])


def fill_prepared(scorer: Scorer, prepared: Sequence[Prepared]) -> list[Filled]:
    logits = scorer.logits([one.ids for one in prepared], [one.slots for one in prepared])
    top = torch.log_softmax(logits, dim=-1).topk(5, dim=-1)
    values, indices = top.values.tolist(), top.indices.tolist()
    filled, at = [], 0
    for one in prepared:
        text, fillings = one.request.text, []
        for rank in range(one.request.search.top_k if one.request.search.top_k < 5 else 5):
            sentence, last, answers = "", 0, []
            for number, (begin, end) in enumerate(one.places):
                token = indices[at + number][rank]
                word = str(scorer.tokenizer.convert_ids_to_tokens(token))
                sentence += text[last:begin]
                last = end
                answers.append(
                    Answer(
                        word,
                        len(sentence),
                        len(sentence) + len(word),
                        (token,),
                        (word,),
                        values[at + number][rank],
                    )
                )
                sentence += word
            total = sum(answer.log_probability for answer in answers)
            fillings.append(
                Filling(sentence + text[last:], tuple(answers), total, total / len(answers))
            )
        at += len(one.places)
        blanks = tuple(Blank(begin, end, "mask") for begin, end in one.places)
        filled.append(Filled(text, blanks, tuple(fillings)))
    return filled
