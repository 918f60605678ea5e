"""Configuration of `fitb fill`; importing it needs no torch, so that flags are checked fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.infer.request import Backend, Constraint, FillRequest, Order, Search


@dataclass(frozen=True)
class FillConfig:
    """Fill the blanks of sentences.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head, or a run; by default the
            student of `fitb demo`.
        texts: sentences in which ___ is a missing word, [MASK] one missing subword and [SPAN] any
            number of subwords; `-` reads lines of standard input.
        top_k: fillings returned per text.
        order: masked position to fill next: the most confident one (confidence), the leftmost
            (left_to_right), or as confidence with iterative refinement afterwards (refine).
        beam: beam width; 1 is greedy.
        max_pieces: most subwords of a blank of unknown length.
        candidates: the only answers allowed.
        regex: regular expression that every answer must match as a whole.
        prefix: prefix of every answer.
        banned: words that no answer may contain.
        blanks: separate constraints for each blank in the order of the text, as JSON:
            '[{"candidates": ["red", "blue"]}, {"prefix": "un"}]'.
        same: groups of blanks, numbered from 1, that must have the same answer: '[[1, 3]]'.
        backend: torch; or onnx or onnx-int8, for a folder that `fitb export` wrote with that file.
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
        self.request("")  # checks all that can be checked without a text
        if self.blanks and self._for_all != Constraint():
            raise ConfigError(
                "--blanks is given with --candidates, --regex, --prefix or --banned; put all"
                " constraints into --blanks"
            )
        if any(number < 1 for group in self.same for number in group):
            raise ConfigError(f"same={self.same}; expected numbers from 1 on")

    @property
    def _for_all(self) -> Constraint:
        return Constraint(tuple(self.candidates), self.regex, self.prefix, tuple(self.banned))

    def request(self, text: str) -> FillRequest:
        """Return the request for one text."""
        search = Search(self.order, self.beam, self.max_pieces, self.top_k)
        constraints = tuple(self.blanks) or (self._for_all,)
        same = tuple(tuple(number - 1 for number in group) for group in self.same)
        return FillRequest(text, search, constraints, same)
