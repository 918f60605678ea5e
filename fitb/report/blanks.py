"""The blanks of held-out rows that a model fills best and worst, in their context.

Legend: B rows of a batch, L length, M used slots of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.corpus.wordpiece import touch
from fitb.errors import FitbError
from fitb.report.gather import Run, without_secrets

if TYPE_CHECKING:
    from fitb.inspect.text import Reader

AROUND = 12  # words on both sides
_BATCH_ROWS = 16


@dataclass(frozen=True)
class Blank:
    """A masked word that was filled.

    Args:
        row: number in the validation split.
        before, after: context: words, and whether each was hidden from the model too.
        truth: the word that was there.
        truth_probability: that the model gives it, its pieces independent of each other.
        given: the model's likeliest word, piece by piece.
        given_probability: likewise.
        loss: of the truth, mean over its pieces, nats.
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
    """The best and the worst blanks of a run, or a sentence why there are none."""

    best: Sequence[Blank] = ()
    worst: Sequence[Blank] = ()
    about: str = ""
    skipped: str = ""


def blanks_of(run: Run, number: int, rows: int, shards: str | None = None) -> Blanks:
    """Fill the blanks of a run's validation rows by its export.

    Masks are those of `fitb evaluate`'s defaults. A word counts where [MASK] is shown for all its
    pieces and it has a letter; each word is listed once.

    Args:
        number: of the best, and of the worst.
        rows: spread evenly over the split; 0 means all.
        shards: folder; None is that of the run's configuration.
    """
    export = run.path / "export"
    where = shards or run.config.get("data.shards")
    if not number:
        return Blanks(skipped="Not asked for: --blanks 0.")
    if not (export / "config.json").is_file():
        return Blanks(skipped="No blanks: the run has no export yet.")
    if not isinstance(where, str) or not (Path(where) / "manifest.json").is_file():
        said = f" at {without_secrets(where)}" if where else ""
        return Blanks(
            skipped=f"No blanks: there are no shards{said}; --shards names another folder."
        )
    try:
        found, num_rows = _filled(export, Path(where), rows)
    except ImportError as error:
        return Blanks(skipped=f"No blanks: {error.name} is not installed.")
    except (FitbError, OSError, ValueError) as error:
        return Blanks(skipped=f"No blanks: {type(error).__name__} while its export was read.")
    if not found:
        return Blanks(skipped="No blanks: the validation rows hold no word that was masked whole.")
    order = sorted(found, key=lambda blank: (blank.loss, blank.row))
    best = list(_each_once(order, number))
    worst = list(_each_once(reversed(order), number))
    about = (
        f"{len(found):,} masked words of {num_rows:,} validation rows, masked as `fitb evaluate`"
        " does; punctuation is left out, and each word is listed once."
    )
    return Blanks(best, worst, about)


def _each_once(blanks: Any, number: int) -> Iterator[Blank]:
    seen: set[str] = set()
    for blank in blanks:
        if len(seen) == number:
            return
        if blank.truth not in seen:
            seen.add(blank.truth)
            yield blank


def _filled(export: Path, folder: Path, rows: int) -> tuple[list[Blank], int]:
    import torch

    from fitb.config import MaskConfig
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.masking import Vocabulary
    from fitb.evaluate.count import choose_rows, masked_batch
    from fitb.evaluate.score import Bert, score
    from fitb.inspect.text import Reader
    from fitb.model.contract import check_contract
    from fitb.model.load import load_model
    from fitb.shards.shard_set import ShardSet

    shards = ShardSet.open(folder, "validation")
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    vocabulary, reader = Vocabulary.of(tokenizer), Reader(shards.tokenizer_folder)
    loaded = load_model(str(export), tokenizer=tokenizer, length=shards.length)
    check_contract(
        tokenizer=tokenizer, manifest=shards.manifest, student=loaded, needs_student_head=True
    )
    model = Bert(loaded.model)
    chosen = choose_rows(shards.num_rows, rows)
    found: list[Blank] = []
    for begin in range(0, len(chosen), _BATCH_ROWS):
        numbers = chosen[begin : begin + _BATCH_ROWS]
        batch, slots = masked_batch(shards, numbers, vocabulary, MaskConfig(), 0)
        with torch.no_grad():
            scores = score({"": model}, batch)[""]
        found += _words(
            numbers, shards.read(numbers).input_ids, batch, slots, scores, reader, vocabulary
        )
    return found, len(chosen)


def _words(
    rows: Any, ids: Any, batch: Any, slots: Any, scores: Any, reader: Reader, vocabulary: Any
) -> Iterator[Blank]:
    """Yield the masked words of a batch, of which [MASK] alone is shown and which have a letter."""
    import numpy as np

    shown = batch.input_ids.numpy()
    for i, row in enumerate(rows):
        mine = np.flatnonzero(slots.row == i)
        numbers = slots.slot_words[mine]
        hidden = set(numbers.tolist())
        for word in sorted(hidden):
            at = np.flatnonzero(slots.words[i] == word)
            its = mine[numbers == word]
            if len(its) != len(at) or (shown[i, at] != vocabulary.mask_id).any():
                continue
            truth = reader.text(ids[i, at].tolist())
            if not any(character.isalpha() for character in truth):
                continue
            before, after = _around(ids[i], slots.words[i], word, hidden, reader)
            loss = float(scores.loss[its].sum())
            yield Blank(
                row=int(row),
                before=before,
                truth=truth,
                truth_probability=math.exp(-loss),
                given=reader.text(scores.predicted[its].tolist()),
                given_probability=float(scores.confidence[its].prod()),
                loss=loss / len(its),
                after=after,
            )


def _around(
    ids: Any, words: Any, word: int, hidden: set[int], reader: Reader
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the words on both sides of one, in its document, as (text, whether hidden)."""
    import numpy as np

    at = np.flatnonzero(words == word)
    ends = np.flatnonzero(words < 0)  # special tokens part documents
    left = int(ends[ends < at[0]].max(initial=-1)) + 1
    right = int(ends[ends > at[-1]].min(initial=len(words)))
    sides: list[list[tuple[str, bool]]] = []
    for places in (range(left, int(at[0])), range(int(at[-1]) + 1, right)):
        numbers = list(dict.fromkeys(words[list(places)].tolist()))
        kept = (
            numbers[-AROUND:] if places.start == left and places.stop == at[0] else numbers[:AROUND]
        )
        sides.append(
            [
                (reader.text(ids[np.flatnonzero(words == each)].tolist()), each in hidden)
                for each in kept
            ]
        )
    return sides[0], sides[1]


def spaced(words: Sequence[tuple[str, bool]], before: str = "") -> list[dict[str, Any]]:
    """Return words with the space that most likely stood before each, for people."""
    found: list[dict[str, Any]] = []
    for text, hidden in words:
        gap = " " if before and not touch(before, text) else ""
        found.append({"gap": gap, "text": text, "hidden": hidden})
        before = text
    return found
