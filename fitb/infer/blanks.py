"""A text with blanks becomes rows with masked positions: a layout for each choice of lengths."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fitb.base.errors import ConfigError, DataError
from fitb.infer.lexicon import Lexicon, lexicon_of
from fitb.infer.request import Blank, Constraint, FillRequest
from fitb.infer.rules import OPEN, ConstraintReader, Rule, rules_of
from fitb.infer.surface import Case, cases
from fitb.infer.windows import num_window_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LAYOUTS = 64  # combinations of lengths that are all looked at
MAX_TOKENS = 32_768  # of a text; each partial filling holds a copy of it


@dataclass(frozen=True)
class Group:
    """Blanks with one answer: most often a single blank.

    Args:
        blanks: their numbers.
        rules: by number of pieces, all that must hold; its keys are the lengths it may have.
        written: candidates as the user wrote them, by their tokens.
    """

    blanks: tuple[int, ...]
    rules: dict[int, tuple[Rule, ...]]
    written: dict[tuple[int, ...], str]


@dataclass(frozen=True)
class Layout:
    """A row in which the number of pieces of every blank is chosen.

    Args:
        row: token ids, [MASK] in every masked position.
        groups: for each group the numbers of its variables, in the order of its pieces.
        variables: for each variable the positions in the row that hold the same token.
        rules: of each group.
    """

    row: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    variables: tuple[tuple[int, ...], ...]
    rules: tuple[tuple[Rule, ...], ...]

    @property
    def group_of(self) -> list[int]:
        """The group of each variable."""
        return [number for number, group in enumerate(self.groups) for _ in group]

    def filled(self, tokens: Sequence[int]) -> list[int]:
        """Return the row with the tokens of the variables in it, [MASK] where one is OPEN."""
        row = list(self.row)
        for positions, token in zip(self.variables, tokens, strict=True):
            if token != OPEN:
                for position in positions:
                    row[position] = token
        return row


@dataclass(frozen=True)
class Prepared:
    """A request, tokenised and checked.

    Args:
        segments: token ids between the blanks; one more than there are blanks.
        max_length: tokens of a row at most.
        window: tokens that the model reads at once.
    """

    request: FillRequest
    lexicon: Lexicon
    blanks: tuple[Blank, ...]
    segments: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...]
    max_length: int
    window: int

    @property
    def places(self) -> list[tuple[int, int]]:
        """Begin and end of each blank in the text."""
        return [(blank.begin, blank.end) for blank in self.blanks]

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """How an answer without case is written in each blank."""
        return cases(self.request.text, self.places)

    @property
    def num_layouts(self) -> int:
        return math.prod(len(group.rules) for group in self.groups)

    @property
    def num_tokens(self) -> int:
        """What the first forward pass costs: rows that the model cannot read whole, by windows."""
        layout = self.layout(self.shortest())
        positions = [at for variable in layout.variables for at in variable]
        tokens = num_window_tokens(len(layout.row), positions, self.window)
        return min(self.num_layouts, MAX_LAYOUTS) * tokens

    def shortest(self) -> tuple[int, ...]:
        return tuple(min(group.rules) for group in self.groups)

    def length(self, pieces: Sequence[int]) -> int:
        """Tokens of the row where each group has so many pieces."""
        ours = sum(n * len(group.blanks) for n, group in zip(pieces, self.groups, strict=True))
        return 2 + sum(map(len, self.segments)) + ours

    def lengths(self, allowed: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Return the combinations of lengths of the groups with which a row is not too long."""
        return [
            pieces
            for pieces in itertools.product(*allowed)
            if self.length(pieces) <= self.max_length
        ]

    def layout(self, pieces: Sequence[int]) -> Layout:
        """Lay the row out where each group has so many pieces."""
        first = list(itertools.accumulate(pieces, initial=0))
        variables = tuple(range(first[-1]))
        positions: list[list[int]] = [[] for _ in variables]
        of_blank = {b: n for n, group in enumerate(self.groups) for b in group.blanks}
        row = [self.lexicon.cls, *self.segments[0]]
        for blank, segment in enumerate(self.segments[1:]):
            group = of_blank[blank]
            for piece in range(pieces[group]):
                positions[first[group] + piece].append(len(row))
                row.append(self.lexicon.mask)
            row += segment
        return Layout(
            row=(*row, self.lexicon.sep),
            groups=tuple(variables[a:b] for a, b in itertools.pairwise(first)),
            variables=tuple(map(tuple, positions)),
            rules=tuple(group.rules[n] for n, group in zip(pieces, self.groups, strict=True)),
        )


def find_blanks(text: str, mask_token: str = "[MASK]") -> tuple[Blank, ...]:
    """Find [MASK], ___ and [SPAN] in a text."""
    found = re.finditer(rf"(?P<mask>{re.escape(mask_token)})|(?P<word>_{{3,}})|\[SPAN\]", text)
    return tuple(Blank(m.start(), m.end(), m.lastgroup or "span") for m in found)  # type: ignore[arg-type]


def _is_text(word: str) -> bool:
    """Whether a string holds no lone surrogates, which stand for bytes that are no UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def prepare(tokenizer: PreTrainedTokenizerBase, request: FillRequest, max_length: int) -> Prepared:
    """Tokenise a request and check all that can be checked without the model.

    Args:
        max_length: tokens that the model reads at once; a longer text is read in windows.
    Raises:
        DataError: no blank, or a text of more than MAX_TOKENS.
        ConfigError: constraints that fit neither the blanks nor the vocabulary.
    """
    words = [w for one in request.constraints for w in (*one.candidates, *one.banned, one.prefix)]
    if not all(map(_is_text, (request.text, *words))):
        raise DataError("it is not UTF-8; convert it, for instance with `iconv -f latin1 -t UTF-8`")
    lexicon = lexicon_of(tokenizer)
    text, blanks = request.text, find_blanks(request.text, str(tokenizer.mask_token))
    if not blanks:
        raise DataError(
            "the text has no blank; write ___ for a word, [MASK] for one piece or [SPAN] for any"
            " number, where something is missing"
        )
    edges = [0, *(edge for blank in blanks for edge in (blank.begin, blank.end)), len(text)]
    segments = tuple(
        tuple(lexicon.encode(text[begin:end]))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    )
    reader = ConstraintReader(lexicon)
    groups = tuple(
        _group(reader, request, blanks, numbers, max_length) for numbers in _groups(request, blanks)
    )
    prepared = Prepared(request, lexicon, blanks, segments, groups, MAX_TOKENS, max_length)
    shortest = prepared.length(prepared.shortest())
    if shortest > MAX_TOKENS:
        raise DataError(
            f"the text has {shortest:,} tokens, at most {MAX_TOKENS:,}; cut what is far from its"
            f" blanks: the model sees {max_length} tokens around each"
        )
    return prepared


def _groups(request: FillRequest, blanks: Sequence[Blank]) -> list[tuple[int, ...]]:
    """Return which blanks share an answer, ordered by their first."""
    together = [tuple(sorted(set(group))) for group in request.same]
    named = [blank for group in together for blank in group]
    if len(named) != len(set(named)) or any(not 0 <= n < len(blanks) for n in named):
        raise ConfigError(
            f"same={[list(group) for group in request.same]}; expected groups of blanks, each from"
            f" 0 to {len(blanks) - 1} and in one group only"
        )
    alone: list[tuple[int, ...]] = [(n,) for n in range(len(blanks)) if n not in named]
    return sorted([group for group in together if group] + alone)


def _group(
    reader: ConstraintReader,
    request: FillRequest,
    blanks: Sequence[Blank],
    numbers: tuple[int, ...],
    max_length: int,
) -> Group:
    given = request.constraints
    if len(given) not in (0, 1, len(blanks)):
        raise ConfigError(
            f"{len(given)} constraints for {len(blanks)} blanks; give one for all, or one for each"
        )
    constraints = [given[min(n, len(given) - 1)] if given else Constraint() for n in numbers]
    glued = [reader.lexicon.continues_word(request.text, blanks[n].begin) for n in numbers]
    answers = [
        reader.candidates(constraint.candidates, mine)
        for constraint, mine in zip(constraints, glued, strict=True)
    ]
    lengths = set.intersection(
        *(
            _lengths(blanks[number], mine, request.search.max_pieces)
            for number, mine in zip(numbers, answers, strict=True)
        )
    )
    if not lengths:
        raise ConfigError(
            f"blanks {list(numbers)} are to have the same answer, but no number of pieces is"
            " possible in all of them; write them alike"
        )
    read = sorted(length for length in lengths if length <= max_length - 2)  # [CLS] and [SEP]
    if not read:
        raise DataError(
            f"the shortest answer to blanks {list(numbers)} has {min(lengths)} pieces, the model"
            f" reads {max_length - 2} at once; give shorter candidates"
        )
    rules: dict[int, tuple[Rule, ...]] = {}
    for length in read:
        found: list[Rule] = []
        for number, constraint, is_glued, mine in zip(
            numbers, constraints, glued, answers, strict=True
        ):
            fit = [tokens for tokens in mine if len(tokens) == length]
            found += rules_of(reader, blanks[number].kind, constraint, is_glued, fit)
        rules[length] = tuple(found)
    return Group(numbers, rules, {t: written for mine in answers for t, written in mine.items()})


def _lengths(blank: Blank, answers: dict[tuple[int, ...], str], max_pieces: int) -> set[int]:
    """Return the numbers of pieces that a blank may have."""
    if answers:
        return {len(tokens) for tokens in answers}
    return {1} if blank.kind == "mask" else set(range(1, max_pieces + 1))
