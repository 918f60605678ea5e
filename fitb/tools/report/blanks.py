"""Masked words of validation rows that a model predicts best and worst, with their context.

Legend: B rows of a batch, L length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base.errors import FitbError
from fitb.corpus.wordpiece import touch
from fitb.rundir import names
from fitb.tools.report.gather import RunData, without_secrets

if TYPE_CHECKING:
    from fitb.evaluation.row_counts import Slots
    from fitb.tools.inspect.decoding import TokenDecoder

AROUND = 12  # words on both sides
_BATCH_ROWS = 16


@dataclass(frozen=True)
class FilledBlank:
    """A masked word and the model's prediction.

    Args:
        row: row number in the validation split.
        before, after: words of the context, and whether each is masked too.
        truth: original word.
        truth_probability: its probability, with subwords independent of each other.
        given: most likely word, subword by subword.
        given_probability: its probability.
        loss: loss of the original word, mean over its subwords, nats.
    """

    row: int
    before: Sequence[tuple[str, bool]]
    truth: str
    truth_probability: float
    given: str
    given_probability: float
    loss: float
    after: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Blanks:
    """Best and worst blanks of a run, or a sentence why there are none."""

    best: Sequence[FilledBlank] = ()
    worst: Sequence[FilledBlank] = ()
    about: str = ""
    skipped: str = ""


def blanks_of(run: RunData, number: int, rows: int, shards: str | None = None) -> Blanks:
    """Fill the blanks of validation rows with a run's export.

    Masks are those of `fitb evaluate`'s defaults. A word counts if all its subwords are [MASK] and
    it has a letter; each word is listed once.

    Args:
        number: number of the best blanks, and of the worst.
        rows: number of validation rows, spread evenly over the split; 0 means all.
        shards: folder of shards; None for that of the run's configuration.
    """
    export = run.path / names.EXPORT
    where = shards or run.config.get("data.shards")
    if not number:
        return Blanks(skipped="No blanks: --blanks 0.")
    if not (export / "config.json").is_file():
        return Blanks(skipped="No blanks: the run has no export yet.")
    if not isinstance(where, str) or not (Path(where) / "manifest.json").is_file():
        at = f" at {without_secrets(where)}" if where else ""
        return Blanks(skipped=f"No blanks: there are no shards{at}; name a folder with --shards.")
    try:
        found, num_rows = _filled(export, Path(where), rows)
    except ImportError as error:
        return Blanks(skipped=f"No blanks: {error.name} is not installed.")
    except (FitbError, OSError, ValueError) as error:
        return Blanks(skipped=f"No blanks: {type(error).__name__} while reading its export.")
    if not found:
        return Blanks(skipped="No blanks: no word of the validation rows is masked as a whole.")
    order = sorted(found, key=lambda blank: (blank.loss, blank.row))
    about = (
        f"{len(found):,} masked words of {num_rows:,} validation rows, masked like `fitb evaluate`,"
        " without punctuation, each word once."
    )
    return Blanks(_each_once(order, number), _each_once(order[::-1], number), about)


def _each_once(blanks: Sequence[FilledBlank], number: int) -> list[FilledBlank]:
    firsts: dict[str, FilledBlank] = {}
    for blank in blanks:
        firsts.setdefault(blank.truth, blank)
    return list(firsts.values())[:number]


def _filled(export: Path, folder: Path, rows: int) -> tuple[list[FilledBlank], int]:
    import torch

    from fitb.config import MaskConfig
    from fitb.evaluation.count import choose_rows, masked_batch
    from fitb.evaluation.measure import EvaluationSet, load_models
    from fitb.evaluation.score import Bert, score
    from fitb.tools.inspect.decoding import TokenDecoder

    where = EvaluationSet.open("validation", str(folder), "validation")
    decoder = TokenDecoder(where.shards.tokenizer_folder)
    model = Bert(load_models({"student": str(export)}, [where], seed=0)["student"].model)
    chosen = choose_rows(where.shards.num_rows, rows)
    found: list[FilledBlank] = []
    for begin in range(0, len(chosen), _BATCH_ROWS):
        numbers = chosen[begin : begin + _BATCH_ROWS]
        batch, slots = masked_batch(where.shards, numbers, where.vocabulary, MaskConfig(), 0)
        with torch.no_grad():
            scores = score({"": model}, batch)[""]
        ids = where.shards.read(numbers).input_ids
        hidden = batch.input_ids.numpy() == where.vocabulary.mask_id
        found += _words(numbers, ids, hidden, slots, scores, decoder)
    return found, len(chosen)


def _words(
    rows: Any, ids: Any, hidden: Any, slots: Slots, scores: Any, decoder: TokenDecoder
) -> Iterator[FilledBlank]:
    """Yield the words of a batch that have a letter and all of whose tokens are [MASK].

    Args:
        rows: (B,) int64, row numbers in the split.
        ids: (B, L) int64, before masking.
        hidden: (B, L) bool, positions of [MASK].
    """
    import numpy as np

    for i, row in enumerate(rows):
        mine = np.flatnonzero(slots.row == i)
        masked = set(slots.slot_words[mine].tolist())
        for word in sorted(masked):
            at = np.flatnonzero(slots.words[i] == word)
            its = mine[slots.slot_words[mine] == word]
            truth = decoder.text(ids[i, at].tolist())
            if len(its) != len(at) or not hidden[i, at].all():
                continue
            if any(character.isalpha() for character in truth):
                before, after = _around(ids[i], slots.words[i], word, masked, decoder)
                loss = float(scores.loss[its].sum())
                yield FilledBlank(
                    row=int(row),
                    before=before,
                    truth=truth,
                    truth_probability=math.exp(-loss),
                    given=decoder.text(scores.predicted[its].tolist()),
                    given_probability=float(scores.confidence[its].prod()),
                    loss=loss / len(its),
                    after=after,
                )


def _around(
    ids: Any, words: Any, word: int, masked: set[int], decoder: TokenDecoder
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the words before and after a word in its document, as (text, whether masked)."""
    import numpy as np

    at = np.flatnonzero(words == word)
    ends = np.flatnonzero(words < 0)  # special tokens separate documents
    left = int(ends[ends < at[0]].max(initial=-1)) + 1
    right = int(ends[ends > at[-1]].min(initial=len(words)))
    before = list(dict.fromkeys(words[left : at[0]].tolist()))[-AROUND:]
    after = list(dict.fromkeys(words[at[-1] + 1 : right].tolist()))[:AROUND]

    def shown(numbers: list[int]) -> list[tuple[str, bool]]:
        return [(decoder.text(ids[words == each].tolist()), each in masked) for each in numbers]

    return shown(before), shown(after)


def spaced(words: Sequence[tuple[str, bool]], before: str = "") -> list[dict[str, Any]]:
    """Return words with the space that most likely preceded each."""
    found: list[dict[str, Any]] = []
    for text, hidden in words:
        gap = " " if before and not touch(before, text) else ""
        found.append({"gap": gap, "text": text, "hidden": hidden})
        before = text
    return found
