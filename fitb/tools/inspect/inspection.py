"""`fitb inspect`: manifest of a shard set, statistics of a sample, masked examples, round trips."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fitb.base.errors import ConfigError
from fitb.base.templates import write_page
from fitb.config import MaskConfig
from fitb.data.coverage import mask_coverage
from fitb.data.masking import IGNORE_INDEX, Vocabulary
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import tokenizer_fingerprint
from fitb.tools.inspect.decoding import TokenDecoder, examples, masked_rows, round_trips
from fitb.tools.inspect.display import as_page
from fitb.tools.inspect.sample import Sample, read_sample
from fitb.tools.inspect.statistics import statistics

_MODEL_ROWS = 8  # logits of (8, 128, 30522) in fp32 are 125 MB


@dataclass(frozen=True)
class InspectConfig:
    """Inspect a shard set.

    Args:
        shards: folder or URL of shards; may stand first without its flag.
        split: train or validation.
        examples: number of masked rows to show.
        rows: sample size for statistics, in ranges of consecutive rows spread over the split.
        model: Hugging Face folder or hub name of a model to run on one batch; null for none.
        seed: seed of the masks; examples are masked as in epoch 0 of a run with this seed.
        mask: masking settings.
        json: print JSON.
        html: HTML page to write.
    """

    shards: str = "data/shards"
    split: str = "train"
    examples: int = 3
    rows: int = 4096
    model: str | None = None
    seed: int = 0
    mask: MaskConfig = field(default_factory=MaskConfig)
    json: bool = False
    html: str | None = None

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"examples={self.examples}; at least 0")
        if self.rows < 1:
            raise ConfigError(f"rows={self.rows}; at least 1")


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Inspect a shard set, without torch unless a model is given; with `html`, write the page.

    Returns: JSON-able; holds text of the corpus, so never log it.
    Raises: DataError if the set is damaged; ContractError if the model does not fit it; what
        write_page raises.
    """
    shards = ShardSet.open(config.shards, config.split)
    decoder = TokenDecoder(shards.tokenizer_folder)
    vocabulary = Vocabulary.of_folder(shards.tokenizer_folder)
    sample = read_sample(shards, config.rows, decoder.special)
    found = {
        "facts": facts(shards),
        "statistics": statistics(
            sample,
            shard_rows=shards.shard_rows,
            vocabulary=vocabulary,
            decoder=decoder,
            overlapping=shards.manifest["settings"].get("stride") is not None,
            mask=config.mask,
        ),
        "masks": mask_coverage(
            sample.input_ids,
            sample.word_starts,
            vocabulary=vocabulary,
            config=config.mask,
            seed=config.seed,
        ),
        "mask": asdict(config.mask),
        "seed": config.seed,
        "round_trips": round_trips(sample, decoder),
        "examples": examples(
            sample,
            config.examples,
            decoder=decoder,
            vocabulary=vocabulary,
            mask=config.mask,
            seed=config.seed,
        ),
        "model": None if config.model is None else try_model(config.model, shards, sample, config),
    }
    if config.html:
        write_page(Path(config.html), as_page(found))
    return found


def facts(shards: ShardSet) -> dict[str, Any]:
    """Return facts of the manifest, JSON-able, and whether the tokenizer is the one it names."""
    manifest = shards.manifest
    tokenizer = manifest["tokenizer"]
    return {
        "shards": shards.name,
        "split": shards.split,
        "fingerprint": shards.fingerprint,
        "corpus_fingerprint": manifest.get("corpus_fingerprint"),
        "format": f"{manifest.get('format')} {manifest['format_version']}",
        "fitb_version": manifest.get("fitb_version"),
        "length": shards.length,
        "num_shards": len(shards.shard_rows),
        "bytes": sum(shards.shard_bytes),
        "splits": manifest["splits"],
        "tokenizer_fingerprint": tokenizer["fingerprint"],
        "tokenizer_matches": tokenizer_fingerprint(shards.tokenizer_folder)
        == tokenizer["fingerprint"],
        "vocab_size": tokenizer["vocab_size"],
        "settings": manifest["settings"],
    }


def try_model(
    model: str, shards: ShardSet, sample: Sample, config: InspectConfig
) -> dict[str, Any]:
    """Check a model against the shards and run it on the first rows of a sample.

    Returns: JSON-able: shape and dtype of the logits, the loss at masked positions in nats, and
        that of uniform guesses, the log of the vocabulary size.
    Raises: ContractError if the model does not fit.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.data.batch import Batch
    from fitb.model.contract import check_contract
    from fitb.model.load import load_model, num_parameters

    tokenizer = load_tokenizer(shards.tokenizer_folder)
    loaded = load_model(model, tokenizer=tokenizer, length=shards.length)
    check_contract(
        tokenizer=tokenizer, manifest=shards.manifest, student=loaded, needs_student_head=True
    )
    chosen = np.arange(min(_MODEL_ROWS, len(sample.rows)))
    batch = Batch.of(
        masked_rows(sample, chosen, Vocabulary.of(tokenizer), config.mask, config.seed)
    )
    with torch.no_grad():
        answer = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    used = batch.labels != IGNORE_INDEX
    row = torch.arange(len(used))[:, None].expand_as(used)[used]
    loss = F.cross_entropy(answer.logits[row, batch.slots[used]].float(), batch.labels[used])
    return {
        "model": model,
        "num_parameters": num_parameters(loaded.model),
        "logits_shape": list(answer.logits.shape),
        "logits_dtype": str(answer.logits.dtype).removeprefix("torch."),
        "loss": float(loss),
        "log_vocab": math.log(len(tokenizer)),
    }
