"""Beam search over the masked positions of a text, as a generator that yields forward passes.

The log-probability of a filling is the sum over its subwords of log p(subword | text, subwords
filled before it), with [MASK] at the positions that are still open. Tied subwords (blanks with the
same answer) are filled together and count once per position. In the order `confidence` the next
position is a function of what was filled, so fillings are the leaves of a tree, and a beam as wide
as the tree finds the best one.

Memory is bounded by the width of the beam, whatever the number of answers considered.

Legend: V vocabulary, M variables asked about, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.infer.blanks import Layout
from fitb.infer.passes import Pass, PassLimits, Steps, packed
from fitb.infer.request import Order
from fitb.infer.rules import OPEN, Test

PATIENCE = 128  # tokens tested, or hypotheses made, between two suspension points
SLACK = 1e-9  # relative rounding of sums of log-probabilities in another order


@dataclass(frozen=True)
class Hypothesis:
    """A partial filling.

    Args:
        tokens: token id of each variable, OPEN if it is not filled.
        log_probs: natural log-probability of each of them, 0 if it is not filled.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        return sum(self.log_probs)

    def with_token(self, variable: int, token: int, log_prob: float) -> Hypothesis:
        tokens, log_probs = list(self.tokens), list(self.log_probs)
        tokens[variable], log_probs[variable] = token, log_prob
        return Hypothesis(tuple(tokens), tuple(log_probs))


@dataclass(frozen=True)
class Question:
    """A query to the model about some variables of a partial filling.

    Args:
        layout: the row.
        hypothesis: tokens of the other variables; those asked about are masked.
        variables: candidates for the next position; the most confident one is answered.
        width: number of likeliest tokens wanted for it.
        first: a token whose log-probability comes before those; for a single variable only.
    """

    layout: Layout
    hypothesis: Hypothesis
    variables: tuple[int, ...]
    width: int
    first: int = OPEN


@dataclass(frozen=True)
class Choices:
    """The likeliest tokens that the rules of a variable allow, likeliest first.

    Args:
        variable: index of the variable.
        tokens: (C,) int64, token ids.
        log_probs: (C,) float64, natural log-probabilities.
    """

    variable: int
    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, number: int) -> Choices:
        return Choices(self.variable, self.tokens[:number].copy(), self.log_probs[:number].copy())


Take = Callable[[int, Choices | None], None]


def decode(
    layouts: Sequence[Layout],
    width: int,
    orders: Sequence[Order],
    limits: PassLimits,
) -> Steps[list[list[Hypothesis]]]:
    """Fill every layout; return the complete hypotheses of each, the most probable first.

    Args:
        layouts: rows to fill.
        width: beam width.
        orders: order of filling of each layout; refine begins like confidence.
        limits: limits of a forward pass.
    """
    sizes = [len(layout.variables) for layout in layouts]
    beams = [[Hypothesis((OPEN,) * size, (0.0,) * size)] for size in sizes]
    while True:
        active = [
            (number, hypothesis)
            for number, beam in enumerate(beams)
            for hypothesis in beam
            if OPEN in hypothesis.tokens
        ]
        if not active:
            return beams
        questions = []
        for number, hypothesis in active:
            askable = _askable(layouts[number], hypothesis, orders[number])
            questions.append(Question(layouts[number], hypothesis, askable, width))
            yield None
        grown = {number: Grown(width) for number, _ in active}
        yield from ask(questions, partial(_grow, active, grown), limits)
        for number, found in grown.items():
            beams[number] = yield from found.best()


@dataclass
class Grown:
    """Extensions of hypotheses by one token, pruned to the best `width` and their ties.

    Args:
        width: beam width.
        parts: hypotheses, choices for one of their variables, and the log-probability to which
            that of the chosen token is added.
    """

    width: int
    parts: list[tuple[Hypothesis, Choices, float]] = field(default_factory=list)
    _size: int = 0

    def add(self, hypothesis: Hypothesis, choices: Choices, before: float) -> None:
        self.parts.append((hypothesis, choices, before))
        self._size += len(choices)
        if self._size > 8 * self.width:
            self.prune()

    def prune(self) -> None:
        """Drop extensions that are not among the best."""
        if self._size <= self.width:
            return
        scores = [before + choices.log_probs for _, choices, before in self.parts]
        least = np.partition(np.concatenate(scores), -self.width)[-self.width]
        least -= SLACK * max(1.0, abs(least))
        kept = [int((mine >= least).sum()) for mine in scores]
        self.parts = [
            (hypothesis, choices.first(number), before)
            for (hypothesis, choices, before), number in zip(self.parts, kept, strict=True)
            if number
        ]
        self._size = sum(kept)

    def best(self) -> Steps[list[Hypothesis]]:
        """Return the best extensions, the most probable first."""
        self.prune()
        found = []
        for hypothesis, choices, _ in self.parts:
            pairs = zip(choices.tokens.tolist(), choices.log_probs.tolist(), strict=True)
            for token, log_prob in pairs:
                found.append(hypothesis.with_token(choices.variable, token, log_prob))
                if len(found) % PATIENCE == 0:
                    yield None
        return best(found, self.width)


def _grow(
    active: Sequence[tuple[int, Hypothesis]],
    grown: dict[int, Grown],
    asked: int,
    choices: Choices | None,
) -> None:
    number, hypothesis = active[asked]
    if choices is not None:  # else some variable has no allowed token: a dead end
        grown[number].add(hypothesis, choices, hypothesis.log_probability)


def best(hypotheses: Sequence[Hypothesis], width: int) -> list[Hypothesis]:
    """Return the most probable distinct hypotheses; ties go to the lower token ids."""
    ranked = sorted(set(hypotheses), key=lambda one: (-one.log_probability, one.tokens))
    return ranked[:width]


def ask(questions: Sequence[Question], take: Take, limits: PassLimits) -> Steps[None]:
    """Answer questions in as few forward passes as the limits allow, short rows first.

    Args:
        questions: what to ask.
        take: called with the index of a question and the choices of its most confident variable;
            with None if no token is allowed for one of its variables.
        limits: limits of a forward pass.
    """
    order = sorted(range(len(questions)), key=lambda n: len(questions[n].layout.row))
    for part in packed(order, lambda number: _size(questions[number]), limits):
        asked = [questions[number] for number in part]
        logits = yield _pass(asked)
        assert logits is not None
        answers = yield from _answers(asked, logits)
        for number, choices in zip(part, answers, strict=True):
            take(number, choices)


def _askable(layout: Layout, hypothesis: Hypothesis, order: Order) -> tuple[int, ...]:
    """Return the variables of which the next one to fill is chosen."""
    open_ones = [v for v, token in enumerate(hypothesis.tokens) if token == OPEN]
    if order == "left_to_right":
        return (min(open_ones, key=lambda v: layout.variables[v][0]),)
    found = []
    for group, rules in zip(layout.groups, layout.rules, strict=True):
        mine = [v for v in group if hypothesis.tokens[v] == OPEN]
        found += mine[:1] if any(rule.in_order for rule in rules) else mine
    return tuple(found)


def _size(question: Question) -> tuple[list[int], int]:
    layout = question.layout
    return [len(layout.row)], sum(len(layout.variables[v]) for v in question.variables)


def _pass(questions: Sequence[Question]) -> Pass:
    return Pass(
        [question.layout.filled(_shown(question)) for question in questions],
        [
            [at for v in question.variables for at in question.layout.variables[v]]
            for question in questions
        ],
    )


def _answers(questions: Sequence[Question], logits: torch.Tensor) -> Steps[list[Choices | None]]:
    """Return the choices of the most confident variable of each question."""
    log_probs = logits.log_softmax(dim=-1)
    asked = [(question, v) for question in questions for v in question.variables]
    log_probs = _tied(log_probs, [len(q.layout.variables[v]) for q, v in asked])  # (M, V)
    tests = yield from _apply_rules(log_probs, questions)
    rows = yield from _surest(log_probs, questions, tests)
    plain = [row for row in rows if row is not None and not tests[row]]
    widest = min(max(question.width for question in questions), log_probs.shape[1])
    top = (log_probs if len(plain) == len(log_probs) else log_probs[plain]).topk(widest, dim=-1)
    likeliest = iter(zip(top.indices.numpy(), top.values.numpy(), strict=True))
    answers: list[Choices | None] = []
    for question, row in zip(questions, rows, strict=True):
        if row is None:
            answers.append(None)
            continue
        if tests[row]:
            tokens, values = yield from _tested(log_probs[row], tests[row], question.width)
        else:
            tokens, values = next(likeliest)
            possible = min(question.width, int((values > -np.inf).sum()))
            tokens, values = tokens[:possible].copy(), values[:possible]
        if question.first != OPEN:
            others = tokens != question.first
            tokens = np.concatenate([[question.first], tokens[others]])
            values = np.concatenate([[log_probs[row, question.first]], values[others]])
        answers.append(Choices(asked[row][1], tokens, values.astype(np.float64)))
    return answers


def _shown(question: Question) -> list[int]:
    """The tokens shown to the model; those asked about are masked."""
    shown = list(question.hypothesis.tokens)
    for variable in question.variables:
        shown[variable] = OPEN
    return shown


def _tied(log_probs: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Sum the rows of tied positions: (sum of sizes, V) -> (M, V)."""
    if len(sizes) == len(log_probs):
        return log_probs
    summed = log_probs.new_zeros(len(sizes), log_probs.shape[1])
    variable = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return summed.index_add_(0, variable, log_probs)


def _apply_rules(log_probs: torch.Tensor, questions: Sequence[Question]) -> Steps[list[list[Test]]]:
    """Set forbidden tokens to -inf in place; return the tests of each row."""
    tests: list[list[Test]] = []
    for question in questions:
        layout, shown = question.layout, _shown(question)
        for variable in question.variables:
            number = next(n for n, group in enumerate(layout.groups) if variable in group)
            rules, group = layout.rules[number], layout.groups[number]
            pieces, at = [shown[v] for v in group], group.index(variable)
            masks = [mask for rule in rules if (mask := rule.mask(pieces, at)) is not None]
            if masks:
                forbidden = torch.from_numpy(~np.logical_and.reduce(masks))
                log_probs[len(tests), : len(forbidden)].masked_fill_(forbidden, -np.inf)
            tests.append([test for rule in rules if (test := rule.test(pieces, at)) is not None])
            yield None
    return tests


def _surest(
    log_probs: torch.Tensor, questions: Sequence[Question], tests: Sequence[list[Test]]
) -> Steps[list[int | None]]:
    """Return the row of the most confident variable of each question; None for a dead end."""
    likeliest = log_probs.amax(dim=-1).tolist()
    found: list[int | None] = []
    begin = 0
    for question in questions:
        rows = range(begin, begin := begin + len(question.variables))
        if question.first != OPEN:
            found.append(rows[0])
            continue
        if len(rows) > 1:
            for row in rows:
                if tests[row] and likeliest[row] > -np.inf:
                    _, values = yield from _tested(log_probs[row], tests[row], 1)
                    likeliest[row] = values[0] if len(values) else -np.inf
        possible = min(likeliest[row] for row in rows) > -np.inf
        ranked = zip(rows, question.variables, strict=True)
        found.append(
            max(ranked, key=lambda one: (likeliest[one[0]], -one[1]))[0] if possible else None
        )
    return found


def _tested(
    log_probs: torch.Tensor, tests: Sequence[Test], width: int
) -> Steps[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Return the `width` likeliest tokens that pass every test, and their entries of (V,) fp32."""
    tokens: list[int] = []
    values: list[float] = []
    few = min(width + PATIENCE, len(log_probs))
    for tried, (token, value) in enumerate(_ranked(log_probs, few)):
        if value == -np.inf or len(tokens) == width:
            break
        if all(test(token) for test in tests):
            tokens.append(token)
            values.append(value)
        if tried % PATIENCE == 0:
            yield None
    return np.array(tokens, np.int64), np.array(values, np.float32)


def _ranked(log_probs: torch.Tensor, few: int) -> Iterator[tuple[int, float]]:
    """Yield all tokens with their values, likeliest first; sorts all only after the first few."""
    top = log_probs.topk(few)
    first = top.indices.tolist()
    yield from zip(first, top.values.tolist(), strict=True)
    seen = set(first)
    ranked = log_probs.sort(descending=True, stable=True)
    for token, value in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True):
        if token not in seen:
            yield token, value
