"""Iterative refinement: predict each masked position again, given the others, until none changes.

A filling is scored by its pseudo-log-likelihood, the sum over its subwords of log p(subword | all
other subwords) (Salazar et al. 2020, https://arxiv.org/abs/1910.14659, restricted to the blanks).
The iteration is mask-predict (Ghazvininejad et al. 2019, https://arxiv.org/abs/1904.09324), one
position at a time and with a beam.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitb.infer.blanks import Layout
from fitb.infer.decode import PATIENCE, Choices, Grown, Hypothesis, Question, ask, best
from fitb.infer.passes import PassLimits, Steps

_MAX_ROUNDS = 10

Tokens = tuple[int, ...]


def refine(
    layout: Layout,
    hypotheses: Sequence[Hypothesis],
    width: int,
    limits: PassLimits,
) -> Steps[list[Hypothesis]]:
    """Improve complete hypotheses; return the best, each subword scored given all others.

    Args:
        layout: the row.
        hypotheses: complete hypotheses of that layout.
        width: beam width.
        limits: limits of a forward pass.
    """
    known: dict[Tokens, Hypothesis] = {}
    changes: dict[Tokens, Grown] = {}  # the most promising ones of one subword
    first = [one.tokens for one in hypotheses]
    yield from _score(layout, first, width, known, changes, limits)
    beam = list(known.values())
    for _ in range(_MAX_ROUNDS):
        promising = yield from _neighbours([changes[one.tokens] for one in beam], width)
        yield from _score(layout, promising, width, known, changes, limits)
        after = best([*beam, *(known[tokens] for tokens in promising)], width)
        if after == beam:
            break
        beam = after
        for tokens in changes.keys() - {one.tokens for one in beam}:
            del changes[tokens]  # it never re-enters the beam
    return best(beam, width)


def _score(
    layout: Layout,
    fillings: Sequence[Tokens],
    width: int,
    known: dict[Tokens, Hypothesis],
    changes: dict[Tokens, Grown],
    limits: PassLimits,
) -> Steps[None]:
    """Score fillings that are not in `known` yet; add them to it, and their changes."""
    size = len(layout.variables)
    new = [tokens for tokens in dict.fromkeys(fillings) if tokens not in known]
    questions = []
    for tokens in new:
        given = Hypothesis(tokens, (0.0,) * size)
        questions += [Question(layout, given, (v,), width, tokens[v]) for v in range(size)]
        yield None
    answers: list[list[Choices]] = [[] for _ in new]

    def take(asked: int, choices: Choices | None) -> None:
        filling, _ = divmod(asked, size)
        assert choices is not None
        mine = answers[filling]
        mine.append(choices)  # which begin with the subword that stands there
        if len(mine) == size:
            own = Hypothesis(new[filling], tuple(float(one.log_probs[0]) for one in mine))
            known[own.tokens], changes[own.tokens] = own, _changes(own, mine, width)
            mine.clear()

    yield from ask(questions, take, limits)


def _changes(filling: Hypothesis, answers: Sequence[Choices], width: int) -> Grown:
    """Return the most promising changes of one subword; each answer begins with the current one."""
    found = Grown(width)
    for choices in answers:
        others = Choices(choices.variable, choices.tokens[1:], choices.log_probs[1:])
        without = filling.log_probability - filling.log_probs[choices.variable]
        found.add(filling, others, without)
    found.prune()
    return found


def _neighbours(changes: Sequence[Grown], width: int) -> Steps[list[Tokens]]:
    """Return the `width` most promising fillings that differ from the beam in one subword."""
    parts = [part for one in changes for part in one.parts]
    if not parts:
        return []
    gains = np.concatenate([without + choices.log_probs for _, choices, without in parts])
    ends = np.cumsum([len(choices) for _, choices, _ in parts])
    promised: dict[Tokens, float] = {}
    last = 0.0
    for number, entry in enumerate(np.argsort(-gains, kind="stable").tolist()):
        gain = float(gains[entry])
        if len(promised) >= width and gain < last:
            break
        last = gain
        part = int(np.searchsorted(ends, entry, side="right"))
        filling, choices, _ = parts[part]
        token = int(choices.tokens[entry - int(ends[part])])  # counted from its end
        log_prob = float(choices.log_probs[entry - int(ends[part])])
        promised.setdefault(filling.with_token(choices.variable, token, log_prob).tokens, gain)
        if number % PATIENCE == 0:
            yield None
    return sorted(promised, key=lambda tokens: (-promised[tokens], tokens))[:width]
