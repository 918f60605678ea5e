"""Tokenise a text with blanks into rows with [MASK] tokens, one layout per choice of lengths."""

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
from fitb.infer.windows import windows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LAYOUTS = 64  # most combinations of lengths that are searched
MAX_TOKENS = 32_768  # most tokens of a text; each partial filling holds a copy of it


@dataclass(frozen=True)
class Group:
    """Blanks that share one answer; usually a single blank.

    Args:
        blanks: indices of the blanks in the text.
        rules: for each allowed number of subwords, the rules that the answer must satisfy.
        written: candidates as the user wrote them, by token ids.
    """

    blanks: tuple[int, ...]
    rules: dict[int, tuple[Rule, ...]]
    written: dict[tuple[int, ...], str]


@dataclass(frozen=True)
class Layout:
    """A row in which every blank has a fixed number of subwords.

    A variable is a token to choose; it stands at one position for each blank of its group.

    Args:
        row: token ids, [MASK] at every masked position.
        groups: for each group the indices of its variables, from left to right.
        variables: for each variable the positions in the row that hold its token.
        rules: the rules of each group.
    """

    row: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    variables: tuple[tuple[int, ...], ...]
    rules: tuple[tuple[Rule, ...], ...]

    def filled(self, tokens: Sequence[int]) -> list[int]:
        """Return the row with these tokens of its variables; OPEN leaves [MASK]."""
        row = list(self.row)
        for positions, token in zip(self.variables, tokens, strict=True):
            if token != OPEN:
                for position in positions:
                    row[position] = token
        return row


@dataclass(frozen=True)
class Prepared:
    """A tokenised and checked request.

    Args:
        request: the request.
        lexicon: vocabulary of the model.
        blanks: blanks of the text, in order.
        segments: token ids of the text between the blanks; one more than there are blanks.
        groups: blanks that share an answer.
        max_length: most tokens of a row.
        window: tokens of a window, the row length at which the model was trained.
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
        """Begin and end of each blank, in characters of the text."""
        return [(blank.begin, blank.end) for blank in self.blanks]

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The case in which a lowercase answer is written into each blank."""
        return cases(self.request.text, self.places)

    @property
    def num_layouts(self) -> int:
        return math.prod(len(group.rules) for group in self.groups)

    @property
    def num_tokens(self) -> int:
        """Tokens of the first forward pass; long rows count by their windows."""
        layout = self.layout(self.shortest())
        positions = [at for variable in layout.variables for at in variable]
        windows = windows_of(len(layout.row), positions, self.window)
        tokens = sum(window.end - window.begin for window in windows)
        return min(self.num_layouts, MAX_LAYOUTS) * tokens

    @property
    def width(self) -> int:
        """The beam width: at least top_k, and at least the number of candidates of any blank."""
        search = self.request.search
        return max(search.beam, search.top_k, *(len(group.written) for group in self.groups))

    def shortest(self) -> tuple[int, ...]:
        """Return the smallest allowed number of subwords of each group."""
        return tuple(min(group.rules) for group in self.groups)

    def trials(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Return group lengths by (group, its length), all other groups with their shortest."""
        shortest = self.shortest()
        return {
            (number, length): pieces
            for number, group in enumerate(self.groups)
            for length in group.rules
            if self.length(pieces := (*shortest[:number], length, *shortest[number + 1 :]))
            <= self.max_length
        }

    def length(self, pieces: Sequence[int]) -> int:
        """Return the tokens of the row if each group has this many subwords."""
        ours = sum(n * len(group.blanks) for n, group in zip(pieces, self.groups, strict=True))
        return 2 + sum(map(len, self.segments)) + ours

    def lengths(self, allowed: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Return the combinations of allowed group lengths whose row is not too long."""
        return [
            pieces
            for pieces in itertools.product(*allowed)
            if self.length(pieces) <= self.max_length
        ]

    def layout(self, pieces: Sequence[int]) -> Layout:
        """Build the layout in which each group has this many subwords."""
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
    """Return the blanks of a text: [MASK], ___ and [SPAN]."""
    found = re.finditer(rf"(?P<mask>{re.escape(mask_token)})|(?P<word>_{{3,}})|\[SPAN\]", text)
    return tuple(Blank(m.start(), m.end(), m.lastgroup or "span") for m in found)  # type: ignore[arg-type]


def prepare(tokenizer: PreTrainedTokenizerBase, request: FillRequest, max_length: int) -> Prepared:
    """Tokenise a request and check everything that needs no model.

    Args:
        tokenizer: fast tokenizer of the model.
        request: text and constraints.
        max_length: tokens that the model reads at once; a longer text is read in windows.
    Raises:
        DataError: the text has no blank, more than MAX_TOKENS tokens, or is not UTF-8.
        ConfigError: constraints do not match the blanks or the vocabulary.
    """
    try:
        "".join((request.text, *request.words)).encode()
    except UnicodeEncodeError:  # lone surrogates stand for bytes that are not UTF-8
        raise DataError(
            "not UTF-8; convert it, for instance with `iconv -f latin1 -t UTF-8`"
        ) from None
    lexicon = lexicon_of(tokenizer)
    text, blanks = request.text, find_blanks(request.text, str(tokenizer.mask_token))
    if not blanks:
        raise DataError(
            "the text has no blank; write ___ for a missing word, [MASK] for one subword or [SPAN]"
            " for any number of subwords"
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
            f"the text has {shortest:,} tokens, at most {MAX_TOKENS:,}; shorten it: the model sees"
            f" only {max_length} tokens around each blank"
        )
    return prepared


def _groups(request: FillRequest, blanks: Sequence[Blank]) -> list[tuple[int, ...]]:
    """Return the groups of blanks that share an answer, ordered by their first blank."""
    together = [tuple(sorted(set(group))) for group in request.same]
    named = [blank for group in together for blank in group]
    if len(named) != len(set(named)) or any(not 0 <= n < len(blanks) for n in named):
        raise ConfigError(
            f"same={[list(group) for group in request.same]}; expected groups of blank numbers from"
            f" 0 to {len(blanks) - 1}, each in at most one group"
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
            f"{len(given)} constraints for {len(blanks)} blanks; give one for all or one per blank"
        )
    constraints = [given[min(n, len(given) - 1)] if given else Constraint() for n in numbers]
    glued = [reader.lexicon.continues_word(request.text, blanks[n].begin) for n in numbers]
    answers = [
        reader.candidates(constraint.candidates, mine)
        for constraint, mine in zip(constraints, glued, strict=True)
    ]
    most = request.search.max_pieces
    lengths = set.intersection(
        *(_lengths(blanks[n], mine, most) for n, mine in zip(numbers, answers, strict=True))
    )
    if not lengths:
        raise ConfigError(
            f"blanks {list(numbers)} must have the same answer, but no number of subwords is"
            " allowed in all of them; use the same kind of blank and the same constraints"
        )
    read = sorted(length for length in lengths if length <= max_length - 2)  # [CLS] and [SEP]
    if not read:
        raise DataError(
            f"the shortest answer to blanks {list(numbers)} has {min(lengths)} subwords, the model"
            f" reads {max_length - 2} at once; give shorter candidates"
        )
    kinds = [blanks[number].kind for number in numbers]
    of_blanks = list(zip(kinds, constraints, glued, answers, strict=True))
    rules: dict[int, tuple[Rule, ...]] = {}
    for length in read:
        found: list[Rule] = []
        for kind, constraint, is_glued, mine in of_blanks:
            fit = [tokens for tokens in mine if len(tokens) == length]
            found += rules_of(reader, kind, constraint, is_glued, fit)
        rules[length] = tuple(found)
    return Group(numbers, rules, {t: written for mine in answers for t, written in mine.items()})


def _lengths(blank: Blank, answers: dict[tuple[int, ...], str], max_pieces: int) -> set[int]:
    """Return the allowed numbers of subwords of a blank."""
    if answers:
        return {len(tokens) for tokens in answers}
    return {1} if blank.kind == "mask" else set(range(1, max_pieces + 1))
