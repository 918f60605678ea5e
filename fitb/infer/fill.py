"""Fill the blanks of texts: joint answers, inserted with the case and spacing of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fitb.base.errors import ConfigError, DataError
from fitb.corpus.wordpiece import CONTINUED, continues, join
from fitb.infer import surface
from fitb.infer.blanks import MAX_LAYOUTS, Layout, Prepared, prepare
from fitb.infer.decode import Hypothesis, decode
from fitb.infer.fill_config import FillConfig
from fitb.infer.passes import PassLimits, Steps, drive
from fitb.infer.refine import refine
from fitb.infer.request import Answer, Filled, Filling, FillRequest, score_of
from fitb.infer.scorer import Scorer, load_scorer


def fill_from(config: FillConfig) -> list[Filled]:
    """Load the model of a configuration and fill its texts.

    Raises:
        ContractError: the model has no trained MLM head or does not match its tokenizer.
        DataError, ConfigError: see `fill`.
    """
    requests = [config.request(text) for text in config.texts]
    return fill(load_scorer(config.model, config.backend), requests)


def fill(scorer: Scorer, requests: Sequence[FillRequest]) -> list[Filled]:
    """Return the best joint fillings of every text; texts share forward passes.

    Args:
        scorer: masked language model.
        requests: texts with their constraints.
    Raises:
        DataError: a text has no blank or is too long; the message holds its number, not the text.
        ConfigError: constraints do not match the blanks or the vocabulary, or a regex is too
            complex.
    """
    prepared = []
    for number, request in enumerate(requests, 1):
        try:
            prepared.append(prepare(scorer.tokenizer, request, scorer.max_length))
        except (DataError, ConfigError) as error:  # user text is not repeated in messages
            raise type(error)(f"text {number}: {error}") from None
    limits = PassLimits()
    return drive(scorer, [search(one, limits) for one in prepared], limits)


def search(prepared: Prepared, limits: PassLimits) -> Steps[Filled]:
    """Fill a prepared text; a search that `drive` or a scheduler supplies with logits.

    Args:
        prepared: tokenised request.
        limits: limits of a forward pass.
    Raises: ConfigError if a regex is too complex.
    """
    layouts = yield from _layouts(prepared, limits)
    width, order = prepared.width, prepared.request.search.order
    beams = yield from decode(layouts, width, [order] * len(layouts), limits)
    found: list[tuple[Layout, Hypothesis]] = []
    for layout, beam in zip(layouts, beams, strict=True):
        if order == "refine" and len(layout.variables) > 1 and beam:
            beam = yield from refine(layout, beam, width, limits)
        found += [(layout, hypothesis) for hypothesis in beam]
    return (yield from _filled(prepared, found))


def _layouts(prepared: Prepared, limits: PassLimits) -> Steps[list[Layout]]:
    """Return the layouts to search: all of them, or the likeliest if there are more than 64."""
    allowed = [sorted(group.rules) for group in prepared.groups]
    if prepared.num_layouts > MAX_LAYOUTS:
        allowed = yield from _likeliest_lengths(prepared, limits)
    return [prepared.layout(pieces) for pieces in prepared.lengths(allowed)]


def _likeliest_lengths(prepared: Prepared, limits: PassLimits) -> Steps[list[list[int]]]:
    """Return the likeliest lengths of each group of blanks, at most 64 combinations in all.

    Each length is scored by a greedy search in which all other groups have their shortest length.
    """
    trials = prepared.trials()
    layouts = [prepared.layout(pieces) for pieces in trials.values()]
    orders = [prepared.request.search.order] * len(layouts)
    beams = yield from decode(layouts, 1, orders, limits)
    scores = {
        trial: _score(layout, beam[0]) if beam else -math.inf
        for trial, layout, beam in zip(trials, layouts, beams, strict=True)
    }
    ranked = [
        sorted(group.rules, key=lambda length: -scores.get((number, length), -math.inf))
        for number, group in enumerate(prepared.groups)
    ]
    kept = max(map(len, ranked))
    while kept > 1 and math.prod(min(kept, len(one)) for one in ranked) > MAX_LAYOUTS:
        kept -= 1
    return [sorted(one[:kept]) for one in ranked]


def _score(layout: Layout, hypothesis: Hypothesis) -> float:
    return score_of(hypothesis.log_probability, sum(map(len, layout.variables)))


def _filled(prepared: Prepared, found: Sequence[tuple[Layout, Hypothesis]]) -> Steps[Filled]:
    ranked = sorted(found, key=lambda one: (-_score(*one), one[1].tokens))
    fillings: dict[str, Filling] = {}  # by sentence: two tokenisations of it are one answer
    for layout, hypothesis in ranked:
        filling = _filling(prepared, layout, hypothesis)
        fillings.setdefault(filling.sentence, filling)
        if len(fillings) == prepared.request.search.top_k:
            break
        yield None
    return Filled(prepared.request.text, prepared.blanks, tuple(fillings.values()))


def _filling(prepared: Prepared, layout: Layout, hypothesis: Hypothesis) -> Filling:
    pieces = prepared.lexicon.pieces
    texts: dict[int, tuple[str, bool]] = {}
    shares: dict[int, tuple[tuple[int, ...], float]] = {}
    for group, variables in zip(prepared.groups, layout.groups, strict=True):
        tokens = tuple(hypothesis.tokens[v] for v in variables)
        share = sum(hypothesis.log_probs[v] for v in variables) / len(group.blanks)
        for number in group.blanks:
            shares[number] = tokens, share
            texts[number] = _text(prepared, number, tokens, group.written.get(tokens))
    in_order = [texts[number] for number in range(len(texts))]
    sentence, places = surface.put(prepared.request.text, prepared.places, in_order)
    answers = []
    for number, (begin, end) in enumerate(places):
        tokens, share = shares[number]
        of_tokens = tuple(pieces[token] for token in tokens)
        answers.append(Answer(texts[number][0], begin, end, tokens, of_tokens, share))
    probability, score = hypothesis.log_probability, _score(layout, hypothesis)
    return Filling(sentence, tuple(answers), probability, score)


def _text(
    prepared: Prepared, number: int, tokens: tuple[int, ...], written: str | None
) -> tuple[str, bool]:
    """Return the text of an answer, and whether it continues the word before the blank."""
    lexicon = prepared.lexicon
    goes_on = bool(lexicon.continues[tokens[0]])
    if written is not None:
        return written, goes_on
    answer = join(lexicon.pieces[token] for token in tokens)
    if lexicon.lowercases and not goes_on and lexicon.is_text[list(tokens)].all():
        answer = surface.in_case(answer, prepared.cases[number])
    return answer, goes_on


def as_json(filled: Sequence[Filled]) -> list[dict[str, Any]]:
    """Return the JSON of `fitb fill`: the fields of Filled, and probabilities."""
    found = []
    for one in filled:
        record = asdict(one)
        for filling, theirs in zip(one.fillings, record["fillings"], strict=True):
            theirs["probability"] = filling.probability
            for answer, mine in zip(filling.answers, theirs["answers"], strict=True):
                mine["probability"] = answer.probability
        found.append(record)
    return found


def render(filled: Sequence[Filled]) -> str:
    """Render as text: the sentence of the best filling, then one line per filling."""
    lines = []
    for one in filled:
        if not one.fillings:
            lines += ["no answer meets the constraints", ""]
            continue
        lines.append(one.fillings[0].sentence)
        for filling in one.fillings:
            answers = " / ".join(_shown(answer) for answer in filling.answers)
            lines.append(f"  {filling.probability:7.2%}  {answers}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _shown(answer: Answer) -> str:
    return CONTINUED + answer.text if continues(answer.pieces[0]) else answer.text
