"""What a command that fills blanks is asked to do; no torch, so that flags are checked fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.infer.request import Backend, Constraint, FillRequest, Order, Search


@dataclass(frozen=True)
class FillConfig:
    """Fill the blanks of sentences.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head, or a run; the demo's
            student.
        texts: sentences in which ___ is a missing word, [MASK] one missing piece and [SPAN] any
            number of pieces; `-` stands for lines of standard input.
        top_k: fillings of each text.
        order: which masked position is filled next: that of which the model is surest (confidence),
            the leftmost (left_to_right), or as confidence and then all again (refine).
        beam: partial fillings kept; 1 is greedy.
        max_pieces: pieces of a blank of unknown length at most.
        candidates: the only answers allowed, each whole.
        regex: matches every answer as a whole.
        prefix: every answer begins with it.
        banned: words that no answer holds.
        blanks: constraints of each blank in the order of the text instead, as JSON:
            '[{"candidates": ["red", "blue"]}, {"prefix": "un"}]'.
        same: groups of blanks, numbered from 1, whose answers are equal: '[[1, 3]]'.
        backend: torch; onnx or onnx-int8 take a folder that `fitb export` wrote with that file.
        json: print JSON.
    """

    model: str = "runs/demo/student/export"
    texts: list[str] = field(default_factory=list)
    top_k: int = 5
    order: Order = "confidence"
    beam: int = 5
    max_pieces: int = 4
    candidates: list[str] = field(default_factory=list)
    regex: str = ""
    prefix: str = ""
    banned: list[str] = field(default_factory=list)
    blanks: list[Constraint] = field(default_factory=list)
    same: list[list[int]] = field(default_factory=list)
    backend: Backend = "torch"
    json: bool = False

    def __post_init__(self) -> None:
        self.request("")  # what can be checked without a text is
        if self.blanks and self._for_all != Constraint():
            raise ConfigError("blanks and a constraint for all of them are given; give one of them")
        if any(number < 1 for group in self.same for number in group):
            raise ConfigError(f"same={self.same}; blanks are numbered from 1")

    @property
    def _for_all(self) -> Constraint:
        return Constraint(tuple(self.candidates), self.regex, self.prefix, tuple(self.banned))

    def request(self, text: str) -> FillRequest:
        """Return what is asked of one text."""
        search = Search(self.order, self.beam, self.max_pieces, self.top_k)
        constraints = tuple(self.blanks) or (self._for_all,)
        same = tuple(tuple(number - 1 for number in group) for group in self.same)
        return FillRequest(text, search, constraints, same)
