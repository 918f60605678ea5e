"""Teacher and student: from a folder, a hub name or a geometry, with what their files lacked."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fitb.base.errors import ConfigError, DataError
from fitb.base.hub import not_found, reading
from fitb.config import Geometry
from fitb.model.configuration import read_config
from fitb.model.loaded import Loaded, check_finite, tokenizer_fingerprint_of
from fitb.model.positions import settle
from fitb.model.saved import load_saved
from fitb.rundir.checkpoints import checkpoint_of

logger = logging.getLogger(__name__)
_BIASES = ("cls.predictions.decoder.bias", "cls.predictions.bias")
_MIN_POSITIONS = 512  # BERT's own, so that a student of a given geometry has the published size
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
# Of other tasks, on top of the encoder: no logit of a blank depends on them. And constants.
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
    attn_implementation: str = "sdpa",
) -> Loaded:
    """Load a BERT with its MLM head, or make one with random weights.

    Args:
        source: Hugging Face folder or hub name, a run or one of its checkpoints, or a geometry.
        tokenizer: gives a geometry its vocabulary size and pad id.
        length: tokens in a row; a geometry will be trained at it and gets at least so many
            positions; None states no trained length.
        dropout: replaces both dropout probabilities; None keeps those of the source.
        seed: of random weights; the global random state is left alone.
        attn_implementation: as transformers names it.
    Raises:
        ConfigError: the source is not a BERT encoder, or not one as fitb computes it.
        DataError: the source is not there, or its weights cannot be read, have other shapes or are
            not finite.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout={dropout}; at least 0, below 1")
    if isinstance(source, Geometry):
        config = _config_of(source, tokenizer, length)
        _set_dropout(config, dropout)
        config._attn_implementation = attn_implementation
        with _seeded(seed):
            model = BertForMaskedLM(config)
        return Loaded(_at_rest(model), source=f"random {source}", is_random=True)
    try:
        is_saved = checkpoint_of(source) is not None
    except PermissionError as error:
        raise not_found("model", source, "config.json", error) from error
    if is_saved:
        return load_saved(
            source, tokenizer=tokenizer, dropout=dropout, attn_implementation=attn_implementation
        )
    model, missing, unexpected = _from_pretrained(source, dropout, seed, attn_implementation)
    fingerprint = tokenizer_fingerprint_of(source)
    if model.config.vocab_size > len(tokenizer) and _has(source, fingerprint, tokenizer):
        _cut_padding(model, len(tokenizer), source)
    return Loaded(model, source, missing, fingerprint, unexpected, tokenizer_source=source)


def encoder(model: BertForMaskedLM) -> nn.Module:
    """Return the module from token ids (B, L) to hidden states (B, L, D)."""
    return model.bert


def mlm_head(model: BertForMaskedLM) -> nn.Module:
    """Return the module from hidden states (..., D) to logits (..., V)."""
    return model.cls


def num_parameters(model: nn.Module) -> int:
    """Count parameters; the embedding that is also the decoder counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _cut_padding(model: BertForMaskedLM, size: int, source: str) -> None:
    """Leave out the rows of a vocabulary that was padded, for which its tokenizer has no piece.

    NVIDIA's checkpoints have 30,528 rows for 30,522 pieces. What stays computes the same logits.
    """
    padded = model.config.vocab_size
    logger.info("model %r: %d rows for %d pieces; the rest is left out", source, padded, size)
    model.resize_token_embeddings(size)


def _has(source: str, fingerprint: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is the one that lies beside a model's weights."""
    own = tokenizer.name_or_path
    return own == source or bool(
        own and fingerprint and fingerprint == tokenizer_fingerprint_of(own)
    )


def _at_rest(model: BertForMaskedLM) -> BertForMaskedLM:
    model.train(False)
    return model


def _config_of(
    geometry: Geometry, tokenizer: PreTrainedTokenizerBase, length: int | None
) -> BertConfig:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=geometry.hidden_size,
        num_hidden_layers=geometry.num_hidden_layers,
        num_attention_heads=geometry.num_attention_heads,
        intermediate_size=geometry.intermediate_size,
        max_position_embeddings=max(_MIN_POSITIONS, length or 0),
        pad_token_id=tokenizer.pad_token_id,
    )
    if length is not None:
        config.trained_length = length  # transformers keeps keys that it does not know
    return config


def _set_dropout(config: BertConfig, dropout: float | None) -> None:
    if dropout is not None:
        config.hidden_dropout_prob = dropout
        config.attention_probs_dropout_prob = dropout


def _from_pretrained(
    source: str, dropout: float | None, seed: int, attn_implementation: str
) -> tuple[BertForMaskedLM, tuple[str, ...], tuple[str, ...]]:
    """Return the model, the weights that it lacked, and those for which it has no place."""
    config = read_config(source)
    settle(config, source)
    _set_dropout(config, dropout)
    with _seeded(seed), quiet(), reading("weights of model", source, *_WEIGHTS):
        loaded: Any = BertForMaskedLM.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once and by name
            attn_implementation=attn_implementation,
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
    return _at_rest(model), tuple(sorted(missing)), tuple(sorted(unexpected))


def _settle_biases(model: BertForMaskedLM, missing: set[str]) -> None:
    """Give a decoder of its own the bias that files of old hold under its other name alone.

    With a tied decoder both names mean one tensor; without, transformers 5 reads decoder.bias.
    """
    if model.config.tie_word_embeddings or not missing.intersection(_BIASES):
        return
    if _BIASES[0] in missing and _BIASES[1] not in missing:
        with torch.no_grad():
            model.cls.predictions.decoder.bias.copy_(model.cls.predictions.bias)
    if not missing.issuperset(_BIASES):
        missing.difference_update(_BIASES)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, and leave torch's global CPU generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' own report and progress bar: fitb says what is to be said."""
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
