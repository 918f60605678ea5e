"""Loading a teacher or student from a folder, a hub name, a run or a geometry."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fitb.base.errors import ConfigError, DataError
from fitb.base.hub import not_found, reading
from fitb.config import Geometry
from fitb.model.configuration import read_config
from fitb.model.flops import MIN_POSITIONS
from fitb.model.loaded import Loaded, check_finite, tokenizer_fingerprint_of
from fitb.model.positions import settle
from fitb.model.saved import load_saved, set_dropout
from fitb.rundir.checkpoints import checkpoint_of

logger = logging.getLogger(__name__)
_BIASES = ("cls.predictions.decoder.bias", "cls.predictions.bias")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
# Heads of other tasks, on which no MLM logit depends, and constants.
_NO_PART = re.compile(
    r"(bert\.)?pooler\.|cls\.seq_relationship\.|fit_dense|classifier\.|qa_outputs\."
    r"|(bert\.)?embeddings\.(position|token_type)_ids$"
)


def load_model(
    source: str | Geometry,
    *,
    tokenizer: PreTrainedTokenizerBase,
    length: int | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> Loaded:
    """Load a BERT with its MLM head, or create one with random weights.

    Args:
        source: Hugging Face folder or hub name, a run or one of its checkpoints, or a geometry.
        tokenizer: tokenizer whose vocabulary size and pad id a geometry gets.
        length: tokens in a row that a geometry will be trained at: its trained length and smallest
            number of positions; None: unknown.
        dropout: both dropout probabilities; None keeps those of the source.
        seed: seed of random weights; the global random state does not change.
    Raises:
        ConfigError: the source is not a BERT encoder that fitb implements.
        DataError: the source does not exist, or its weights cannot be read, have other shapes or
            are not finite.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout={dropout}; at least 0, below 1")
    if isinstance(source, Geometry):
        config = BertConfig(
            **asdict(source),
            vocab_size=len(tokenizer),
            max_position_embeddings=max(MIN_POSITIONS, length or 0),
            pad_token_id=tokenizer.pad_token_id,
        )
        if length is not None:
            config.trained_length = length  # transformers keeps unknown keys
        set_dropout(config, dropout)
        with seeded(seed):
            model = BertForMaskedLM(config)
        model.train(False)
        return Loaded(model, source=f"random {source}", is_random=True)
    try:
        is_saved = checkpoint_of(source) is not None
    except PermissionError as error:
        raise not_found("model", source, "config.json", error) from error
    if is_saved:
        return load_saved(source, tokenizer=tokenizer, dropout=dropout)
    model, missing, unexpected = _from_pretrained(source, dropout, seed)
    fingerprint = tokenizer_fingerprint_of(source)
    size, padded = len(tokenizer), model.config.vocab_size
    if padded > size and _has(source, fingerprint, tokenizer):
        # NVIDIA's checkpoints have 30,528 rows for 30,522 tokens. The other logits do not change.
        logger.info("model %r: %d rows for %d tokens; the rest is removed", source, padded, size)
        model.resize_token_embeddings(size)
    return Loaded(model, source, missing, fingerprint, unexpected, tokenizer_source=source)


def encoder(model: BertForMaskedLM) -> nn.Module:
    """Return the module that maps token ids (B, L) to hidden states (B, L, D)."""
    return model.bert


def mlm_head(model: BertForMaskedLM) -> nn.Module:
    """Return the module that maps hidden states (..., D) to logits (..., V)."""
    return model.cls


def num_parameters(model: nn.Module) -> int:
    """Count parameters; the embedding, which is tied to the decoder, counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _has(source: str, fingerprint: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is that of the model's own folder."""
    own = tokenizer.name_or_path
    return own == source or bool(
        own and fingerprint and fingerprint == tokenizer_fingerprint_of(own)
    )


def _from_pretrained(
    source: str, dropout: float | None, seed: int
) -> tuple[BertForMaskedLM, tuple[str, ...], tuple[str, ...]]:
    """Return the model, the names of missing weights, and those of unexpected weights."""
    config = read_config(source)
    settle(config, source)
    set_dropout(config, dropout)
    with seeded(seed), quiet(), reading("weights of model", source, *_WEIGHTS):
        loaded: Any = BertForMaskedLM.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
            attn_implementation="sdpa",
            dtype=torch.float32,
            trust_remote_code=False,
        )
    model, report = loaded
    if report["mismatched_keys"]:
        shapes = ", ".join(
            f"{name} is {tuple(found)} and should be {tuple(expected)}"
            for name, found, expected in sorted(report["mismatched_keys"])
        )
        raise DataError(
            f"model {source!r}: weights and config.json disagree: {shapes}; put back the"
            " config.json that was saved with the weights"
        )
    missing = set(report["missing_keys"])
    _settle_biases(model, missing)
    check_finite(model, source)
    unexpected = (name for name in report["unexpected_keys"] if not _NO_PART.match(name))
    model.train(False)
    return model, tuple(sorted(missing)), tuple(sorted(unexpected))


def _settle_biases(model: BertForMaskedLM, missing: set[str]) -> None:
    """Set the bias of an untied decoder from predictions.bias, the only name in old files.

    With a tied decoder both names are one tensor; otherwise transformers 5 reads decoder.bias.
    """
    if model.config.tie_word_embeddings or not missing.intersection(_BIASES):
        return
    if _BIASES[0] in missing and _BIASES[1] not in missing:
        with torch.no_grad():
            model.cls.predictions.decoder.bias.copy_(model.cls.predictions.bias)
    if not missing.issuperset(_BIASES):
        missing.difference_update(_BIASES)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the load report and progress bars of transformers."""
    verbosity = transformers_logging.get_verbosity()
    bars: Any = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
