"""Shard sets of a few made-up documents, on disk and in memory."""

import dataclasses

import numpy as np

from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.shards.shard_set import Rows


@dataclasses.dataclass
class MemoryShards:
    """Rows in memory, as far as counting reads them."""

    input_ids: np.ndarray
    word_starts: np.ndarray

    def read(self, rows):
        return Rows(self.input_ids[rows], self.word_starts[rows])

    def document_numbers(self, rows):
        return 100 * rows


def write_shards(folder, seed, **changes):
    draw = np.random.default_rng(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "reading", "in", "Paris"]
    made_up = ["".join(draw.choice(list("aeioubdgklmnst"), 3)) for _ in range(80)]
    documents = [" ".join([*draw.choice(words, 40), *made_up[i : i + 9]]) + "." for i in range(80)]
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    settings = {
        "out": str(folder / "shards"),
        "source": "text",
        "files": [str(folder / "text.txt")],
        "vocab_size": 256,
        "length": 32,
        "validation_fraction": 0.3,
        "shard_mb": 0.005,
        "workers": 1,
    }
    prepare(PrepareConfig(**(settings | changes)))
    return str(folder / "shards")
