"""A beam over the slots of many texts at once: joint answers, one forward pass per wave.

A filling's log-probability is the sum over its pieces of log p(piece | the text and the pieces that
were filled before it, the slots still open being [MASK]). Pieces that are tied to one another
(blanks with the same answer) are filled together and count once for each slot. In the order
`confidence` the next slot is a function of what was filled, so the fillings are the leaves of a
tree, and a beam as wide as the tree finds the best of them all.

Legend: V vocabulary, M variables asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fitb.infer.blanks import Layout
from fitb.infer.request import Order
from fitb.infer.rules import OPEN, Rule
from fitb.infer.scorer import Scorer

_MAX_TOKENS = 8192  # of a forward pass, padding included
_ENOUGH_TOKENS = 1024  # a pass of as many gains little by more rows, and loses by padding
_GROWTH = 1.1  # of the rows of such a pass
_MAX_SLOTS = 1024  # through the head at a time: (1024, 30522) fp32 is 125 MB


@dataclass(frozen=True)
class Hypothesis:
    """A partial filling.

    Args:
        tokens: of each variable, OPEN where nothing stands yet.
        log_probs: of each variable, natural, 0 where it is open.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        return sum(self.log_probs)

    @property
    def is_complete(self) -> bool:
        return OPEN not in self.tokens

    def with_token(self, variable: int, token: int, log_prob: float) -> Hypothesis:
        tokens, log_probs = list(self.tokens), list(self.log_probs)
        tokens[variable], log_probs[variable] = token, log_prob
        return Hypothesis(tuple(tokens), tuple(log_probs))


@dataclass(frozen=True)
class Question:
    """What is asked of the model.

    Args:
        hypothesis: what stands in the layout; the variables asked about count as open.
        width: likeliest tokens wanted of each.
        first: of a single variable, a token whose log-probability is wanted before those.
    """

    layout: Layout
    hypothesis: Hypothesis
    variables: tuple[int, ...]
    width: int
    first: int = OPEN


Choices = list[tuple[int, float]]  # (token, log-probability), likeliest first


def decode(
    scorer: Scorer, layouts: Sequence[Layout], widths: Sequence[int], orders: Sequence[Order]
) -> list[list[Hypothesis]]:
    """Fill every layout; return the complete hypotheses of each, the most probable first.

    Args:
        widths: of the beam of each layout.
        orders: of each; refine begins as confidence does.
    """
    beams = [[_open(layout)] for layout in layouts]
    while True:
        active = [
            (number, hypothesis)
            for number, beam in enumerate(beams)
            for hypothesis in beam
            if not hypothesis.is_complete
        ]
        if not active:
            return beams
        questions = [
            Question(
                layouts[number],
                hypothesis,
                _askable(layouts[number], hypothesis, orders[number]),
                widths[number],
            )
            for number, hypothesis in active
        ]
        grown: dict[int, list[Hypothesis]] = {number: [] for number, _ in active}
        for (number, hypothesis), choices in zip(active, ask(scorer, questions), strict=True):
            if all(choices.values()):  # else nothing may stand in some place: a dead end
                _, variable = max((found[0][1], -v) for v, found in choices.items())
                grown[number] += [hypothesis.with_token(-variable, *c) for c in choices[-variable]]
        for number, hypotheses in grown.items():
            beams[number] = best(hypotheses, widths[number])


def best(hypotheses: Sequence[Hypothesis], width: int) -> list[Hypothesis]:
    """Return the most probable, each once; ties go to the lower tokens."""
    ranked = sorted(set(hypotheses), key=lambda one: (-one.log_probability, one.tokens))
    return ranked[:width]


def ask(scorer: Scorer, questions: Sequence[Question]) -> Iterator[dict[int, Choices]]:
    """Yield for each question the likeliest tokens that its rules allow, of each variable asked.

    Rows of all questions are mixed, short ones with short ones, as many as a forward pass may hold.
    """
    order = sorted(range(len(questions)), key=lambda n: len(questions[n].layout.row))
    answers: dict[int, dict[int, Choices]] = {}
    for part in _parts(questions, order):
        answers |= zip(part, _ask_part(scorer, [questions[n] for n in part]), strict=True)
    return (answers[number] for number in range(len(questions)))


def _open(layout: Layout) -> Hypothesis:
    size = len(layout.variables)
    return Hypothesis((OPEN,) * size, (0.0,) * size)


def _askable(layout: Layout, hypothesis: Hypothesis, order: Order) -> tuple[int, ...]:
    """Return the variables of which one is filled next."""
    open_ones = [v for v, token in enumerate(hypothesis.tokens) if token == OPEN]
    if order == "left_to_right":
        return (min(open_ones, key=lambda v: layout.variables[v][0]),)
    found = []
    for group, rules in zip(layout.groups, layout.rules, strict=True):
        mine = [v for v in group if hypothesis.tokens[v] == OPEN]
        found += mine[:1] if any(rule.in_order for rule in rules) else mine
    return tuple(found)


def _parts(questions: Sequence[Question], order: Sequence[int]) -> Iterator[list[int]]:
    """Cut questions, shortest rows first, into what one forward pass holds."""
    part: list[int] = []
    slots = 0
    for number in order:
        question = questions[number]
        more = sum(len(question.layout.variables[v]) for v in question.variables)
        length = len(question.layout.row)
        tokens = (len(part) + 1) * length
        shortest = len(questions[part[0]].layout.row) if part else length
        pads = tokens > _ENOUGH_TOKENS and length > _GROWTH * shortest
        if part and (pads or tokens > _MAX_TOKENS or slots + more > _MAX_SLOTS):
            yield part
            part, slots = [], 0
        part.append(number)
        slots += more
    if part:
        yield part


def _ask_part(scorer: Scorer, questions: Sequence[Question]) -> list[dict[int, Choices]]:
    rows = [question.layout.filled(_shown(question)) for question in questions]
    slots = [
        [slot for v in question.variables for slot in question.layout.variables[v]]
        for question in questions
    ]
    log_probs = scorer.logits(rows, slots).log_softmax(dim=-1)
    asked = [(question, v) for question in questions for v in question.variables]
    log_probs = _tied(log_probs, [len(q.layout.variables[v]) for q, v in asked])  # (M, V)
    _apply_masks(log_probs, asked)
    widest = min(max(question.width for question in questions), log_probs.shape[1])
    top = log_probs.topk(widest, dim=-1)
    found = iter(zip(asked, top.indices.tolist(), top.values.tolist(), log_probs, strict=True))
    answers: list[dict[int, Choices]] = []
    for question in questions:
        mine: dict[int, Choices] = {}
        for _ in question.variables:
            (_, variable), tokens, values, all_of_them = next(found)
            if _rules(question, variable):
                choices = _tested(question, variable, tokens, values, all_of_them)
            else:
                choices = list(zip(tokens, values, strict=True))[: question.width]
            if question.first != OPEN:
                others = [choice for choice in choices if choice[0] != question.first]
                choices = [(question.first, float(all_of_them[question.first])), *others]
            mine[variable] = choices
        answers.append(mine)
    return answers


def _shown(question: Question) -> list[int]:
    """The tokens that are shown to the model: what is asked about is not."""
    return [
        OPEN if variable in question.variables else token
        for variable, token in enumerate(question.hypothesis.tokens)
    ]


def _tied(log_probs: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Add the rows of the slots of each variable up: (sum of sizes, V) -> (M, V)."""
    if len(sizes) == len(log_probs):
        return log_probs
    summed = log_probs.new_zeros(len(sizes), log_probs.shape[1])
    variable = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return summed.index_add_(0, variable, log_probs)


def _rules(question: Question, variable: int) -> tuple[Rule, ...]:
    layout = question.layout
    return layout.rules[layout.group_of[variable]]


def _pieces(question: Question, variable: int) -> tuple[list[int], int]:
    """Return the tokens of the variable's group as the rules see them, and its place in it."""
    layout, shown = question.layout, _shown(question)
    group = layout.groups[layout.group_of[variable]]
    return [shown[v] for v in group], group.index(variable)


def _apply_masks(log_probs: torch.Tensor, asked: Sequence[tuple[Question, int]]) -> None:
    """Make impossible, in place, what no rule allows."""
    for row, (question, variable) in enumerate(asked):
        rules = _rules(question, variable)
        if not rules:
            continue
        pieces, at = _pieces(question, variable)
        masks = [mask for rule in rules if (mask := rule.mask(pieces, at)) is not None]
        if masks:
            forbidden = ~np.logical_and.reduce(masks)
            log_probs[row, : len(forbidden)].masked_fill_(torch.from_numpy(forbidden), -np.inf)


def _tested(
    question: Question,
    variable: int,
    tokens: Sequence[int],
    values: Sequence[float],
    all_of_them: torch.Tensor,
) -> Choices:
    """Return the likeliest tokens that pass every test; all are tried where the first do not do."""
    rules = _rules(question, variable)
    pieces, at = _pieces(question, variable)
    found: Choices = []

    def passes(token: int) -> bool:
        return all(rule.test(pieces, at, token) for rule in rules)

    for token, value in zip(tokens, values, strict=True):
        if value == -np.inf:
            return found
        if passes(token):
            found.append((token, value))
        if len(found) == question.width:
            return found
    if len(tokens) == len(all_of_them):
        return found
    ranked = all_of_them.sort(descending=True, stable=True)
    for token, value in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True):
        if value == -np.inf or len(found) == question.width:
            break
        if token not in tokens and passes(token):
            found.append((token, value))
    return found
