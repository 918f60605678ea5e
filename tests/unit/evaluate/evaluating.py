"""Shard sets of a few made-up documents."""

import numpy as np

from fitb.prepare.preparation import prepare
from fitb.prepare.settings import PrepareConfig


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
