"""Shard sets of a few made-up documents, on disk and in memory; their masks; sharp models."""

import dataclasses

import numpy as np
import torch
from transformers import BertForMaskedLM

from fitb.config import Geometry, MaskConfig
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary, mask_rows
from fitb.evaluation.count import EVALUATION_EPOCH, choose_rows, count
from fitb.model.load import load_model
from fitb.shards.shard_set import Rows, ShardSet

LENGTH = 50


@dataclasses.dataclass
class MemoryShards:
    """Rows in memory, as far as counting reads them."""

    input_ids: np.ndarray
    word_starts: np.ndarray

    def read(self, rows):
        return Rows(self.input_ids[rows], self.word_starts[rows])

    def document_numbers(self, rows):
        return 100 * rows


def masked_rows(shards, rows, vocabulary, mask=None, seed=0):
    """Mask rows as an evaluation does."""
    return mask_rows(
        shards.input_ids[rows],
        shards.word_starts[rows],
        np.array(rows),
        np.full(len(rows), EVALUATION_EPOCH),
        seed=seed,
        vocabulary=vocabulary,
        config=mask or MaskConfig(),
    )


def sharp_model(tokenizer, layers=2, seed=0):
    """A small model of random weights, sharp enough to be right now and then."""
    sizes = Geometry(layers, hidden_size=24, intermediate_size=32, num_attention_heads=3)
    model = load_model(sizes, tokenizer=tokenizer, seed=seed).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def counts_of(model, folder, num_rows, seed=0):
    """Counts of a saved model on rows of a validation split, all in one process."""
    shards = ShardSet.open(folder, "validation")
    return count(
        BertForMaskedLM.from_pretrained(model),
        shards,
        choose_rows(shards.num_rows, num_rows),
        vocabulary=Vocabulary.of(load_tokenizer(shards.tokenizer_folder)),
        mask=MaskConfig(),
        seed=seed,
    )


def write_shards(folder, documents, **changes):
    """Prepare documents, or made-up ones of a seed; return the folder of the shards."""
    if isinstance(documents, int):
        documents = made_up(documents)
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


def made_up(seed):
    draw = np.random.default_rng(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "reading", "in", "Paris"]
    others = ["".join(draw.choice(list("aeioubdgklmnst"), 3)) for _ in range(80)]
    return [" ".join([*draw.choice(words, 40), *others[i : i + 9]]) + "." for i in range(80)]
