"""Iterative refinement: every slot is asked again, given all others, until nothing changes.

A filling is scored by its pseudo-log-likelihood, the sum over its pieces of log p(piece | all other
pieces) (Salazar et al. 2020, https://arxiv.org/abs/1910.14659, restricted to the blanks); asking
again and again is the mask-predict of Ghazvininejad et al. 2019, https://arxiv.org/abs/1904.09324,
one slot at a time and with a beam.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitb.infer.blanks import Layout
from fitb.infer.decode import Choices, Hypothesis, Question, ask, best
from fitb.infer.scorer import Scorer

_MAX_ROUNDS = 10


def refine(
    scorer: Scorer, layout: Layout, hypotheses: Sequence[Hypothesis], width: int
) -> list[Hypothesis]:
    """Improve complete hypotheses; return the best, each piece scored given all others.

    Args:
        hypotheses: complete, of one layout.
        width: of the beam.
    """
    known: dict[tuple[int, ...], list[Choices]] = {}
    beam = _scored(scorer, layout, [one.tokens for one in hypotheses], width, known)
    for _ in range(_MAX_ROUNDS):
        tried = {one.tokens for one in beam}
        changed = [tokens for tokens in _neighbours(beam, known, width) if tokens not in tried]
        after = best([*beam, *_scored(scorer, layout, changed, width, known)], width)
        if after == beam:
            break
        beam = after
    return best(beam, width)


def _scored(
    scorer: Scorer,
    layout: Layout,
    fillings: Sequence[tuple[int, ...]],
    width: int,
    known: dict[tuple[int, ...], list[Choices]],
) -> list[Hypothesis]:
    """Ask for every variable of every filling given the others; `known` keeps what was said.

    A piece's own log-probability is looked up among the answers, which always hold it first.
    """
    variables = range(len(layout.variables))
    new = [tokens for tokens in dict.fromkeys(fillings) if tokens not in known]
    questions = [
        Question(layout, Hypothesis(tokens, (0.0,) * len(tokens)), (v,), width, tokens[v])
        for tokens in new
        for v in variables
    ]
    answers = ask(scorer, questions)
    for tokens in new:
        known[tokens] = [next(answers)[v] for v in variables]
    return [
        Hypothesis(tokens, tuple(choices[0][1] for choices in known[tokens]))
        for tokens in dict.fromkeys(fillings)
    ]


def _neighbours(
    beam: Sequence[Hypothesis], known: dict[tuple[int, ...], list[Choices]], width: int
) -> list[tuple[int, ...]]:
    """Return the fillings that differ from one of the beam in one piece and promise most."""
    promised: dict[tuple[int, ...], float] = {}
    for one in beam:
        for variable, choices in enumerate(known[one.tokens]):
            for token, log_prob in choices[1:]:
                gain = one.log_probability - one.log_probs[variable] + log_prob
                tokens = one.with_token(variable, token, log_prob).tokens
                promised[tokens] = max(gain, promised.get(tokens, gain))
    return sorted(promised, key=lambda tokens: (-promised[tokens], tokens))[:width]
