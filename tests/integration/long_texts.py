"""How well a model fills texts of four times the length that it was trained at.

    PYTHONPATH=tests/integration python tests/integration/long_texts.py MODEL SHARDS [TEXTS]

The text of SHARDS' validation rows, tokenised as MODEL's, is cut into long texts. Single words of
them are blanks, one at a time: asked in a row of the trained length, which is the measure, in the
long text through `fitb fill`'s function, and through a server that runs. `fitb evaluate`'s function
reads the same documents in rows of both lengths. Prints the share of blanks whose first answer is
right; `read_whole` is that of long rows without windows, which is near chance where the positions
were never trained.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serving import serving

from fitb.corpus.shards import ShardSet
from fitb.corpus.tokenizer import load_tokenizer
from fitb.evaluate.config import EvaluateConfig
from fitb.evaluate.run import evaluate
from fitb.infer.fill import fill
from fitb.infer.request import FillRequest, Search
from fitb.infer.scorer import load_scorer
from fitb.inspect.text import Reader
from fitb.prepare.preparation import prepare
from fitb.prepare.settings import PrepareConfig

TIMES = 4
_EVERY = 25  # ordinary tokens from one blank to the next
_ROWS = 512
_REQUEST = 64  # texts


@dataclass(frozen=True)
class Asked:
    """A word of a long text, and the row of the trained length that it lies in."""

    token: int
    text: str
    row: tuple[int, ...]
    place: int


def documents(shards: ShardSet, reader: Reader, special: Sequence[int]) -> Iterator[list[int]]:
    """Yield the ordinary tokens of each text of the rows, joined where rows cut them."""
    rows = np.arange(min(shards.num_rows, _ROWS * TIMES))
    whole: list[int] = []
    for row in shards.read(rows).input_ids:
        for place, token in enumerate(row.tolist()):
            if token not in special:
                whole.append(token)
            elif 0 < place < len(row) - 1 and whole:  # a [SEP] inside a row ends a text
                yield whole
                whole = []
    yield whole


def asked(
    shards: ShardSet, reader: Reader, tokenizer: Any, trained: int, number: int
) -> Iterator[Asked]:
    """Yield blanks of so many texts, each of which is read again as the very same tokens."""
    special, size = set(tokenizer.all_special_ids), trained - 2
    stream = [token for text in documents(shards, reader, list(special)) for token in text]
    found = 0
    for begin in range(0, len(stream) - TIMES * size, TIMES * size):
        ids = stream[begin : begin + TIMES * size]
        if found == number:
            return
        if reader.encode([reader.text(ids)]) != [ids]:
            continue
        found += 1
        pieces = [*reader.pieces(ids), ""]
        for at in range(_EVERY // 2, len(ids), _EVERY):
            if any(piece.startswith("##") for piece in pieces[at : at + 2]):
                continue
            before, after = (reader.text(part) for part in (ids[:at], ids[at + 1 :]))
            text = f"{before} {tokenizer.mask_token} {after}"
            row = ids[at - at % size : at - at % size + size]
            row[at % size] = tokenizer.mask_token_id
            ends = tokenizer.cls_token_id, tokenizer.sep_token_id
            yield Asked(ids[at], text, (ends[0], *row, ends[1]), 1 + at % size)


def of_server(model: str, texts: Sequence[str], folder: Path) -> list[str]:
    """Return the first pieces that a server answers."""
    found = []
    search = {"top_k": 1, "beam": 1}
    with serving(folder, model, "--deadline_s", "120") as served:
        for begin in range(0, len(texts), _REQUEST):
            part = [{"text": t, "search": search} for t in texts[begin : begin + _REQUEST]]
            answers = served.fill(*part)
            found += [each["fillings"][0]["answers"][0]["pieces"][0] for each in answers]
    return found


def of_evaluation(
    model: str, shards: ShardSet, reader: Reader, tokenizer: Any, folder: Path
) -> tuple[float, float]:
    """Return top-1 of rows of the trained length and of long ones, of the same documents."""
    special = tokenizer.all_special_ids
    lines = [reader.text(ids) for ids in documents(shards, reader, special) if ids]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    found = []
    for length in (shards.length, TIMES * shards.length):
        out = str(folder / f"of-{length}")
        source = {"source": "text", "files": [str(folder / "text.txt")], "tokenizer": model}
        prepare(PrepareConfig(out=out, length=length, validation_fraction=0.5, workers=1, **source))
        config = EvaluateConfig(model=model, shards=out, masks=3, baselines=False, resamples=1)
        result = evaluate(config)
        (of_set,) = result["sets"].values()
        found.append(of_set["models"]["model"]["over_masks"]["top1"]["mean"])
    return found[0], found[1]


def measure(model: str, where: str, number: int) -> dict[str, Any]:
    """Return the figures, shares from 0 to 1, and whether server and function agree."""
    scorer, shards = load_scorer(model), ShardSet.open(where, "validation")
    assert scorer.max_length == shards.length, (scorer.max_length, shards.length)
    tokenizer, reader = load_tokenizer(model), Reader(shards.tokenizer_folder)
    blanks = list(asked(shards, reader, tokenizer, scorer.max_length, number))
    true = np.array([each.token for each in blanks])
    with tempfile.TemporaryDirectory(prefix="fitb-long-") as name:
        rows = [int(scorer.logits([each.row], [[each.place]]).argmax(dim=-1)) for each in blanks]
        requests = [FillRequest(each.text, Search(top_k=1, beam=1)) for each in blanks]
        filled = [found.fillings[0].answers[0].tokens[0] for found in fill(scorer, requests)]
        trained, scorer.max_length = scorer.max_length, TIMES * shards.length
        whole = [found.fillings[0].answers[0].tokens[0] for found in fill(scorer, requests)]
        scorer.max_length = trained
        pieces = of_server(model, [each.text for each in blanks], Path(name) / "server")
        short, long = of_evaluation(model, shards, reader, tokenizer, Path(name))
    served = tokenizer.convert_tokens_to_ids(pieces)
    right = {"rows": rows, "fill": filled, "serve": served, "read_whole": whole}
    return {
        "trained_length": scorer.max_length,
        "blanks": len(blanks),
        **{key: float((np.array(found) == true).mean()) for key, found in right.items()},
        "commonest_word": float((true == np.bincount(true).argmax()).mean()),
        "evaluate_rows": short,
        "evaluate_long_rows": long,
        "served_as_filled": filled == served,
    }


if __name__ == "__main__":
    model, where, *number = sys.argv[1:]
    print(json.dumps(measure(model, where, int(number[0]) if number else 200), indent=2))
