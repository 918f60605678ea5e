"""Loading the student of a checkpoint without the training code.

A checkpoint has fp32 tensors named `param/student.model.NAME`, whole or in fragments;
settings that no shape implies (heads, dropout) are in the run's config.yaml. torch is imported only
to read weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base import fsio
from fitb.base.errors import CheckpointError, DataError
from fitb.config import Config, Geometry
from fitb.config.parser import parse
from fitb.model.fragments import joined
from fitb.model.loaded import Loaded, check_finite, some, tokenizer_fingerprint_of
from fitb.model.positions import settle
from fitb.rundir import checkpoints, names
from fitb.rundir.checkpoints import checkpoint_of

if TYPE_CHECKING:
    import torch
    from transformers import BertConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_STUDENT = "param/student.model."
_TIED = {f"cls.predictions.decoder.{name}" for name in ("weight", "bias")}  # to saved tensors
_EMBEDDINGS = "bert.embeddings."


def load_saved(
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dropout: float | None = None,
) -> Loaded:
    """Load the student of a checkpoint, or of the newest checkpoint of a run.

    Every file is hashed before it is used. The tokenizer is that of the run's export, if any.

    Args:
        path: a run or a checkpoint, as in `checkpoint_of`.
        tokenizer: tokenizer whose pad id a student made from a geometry gets; None: BERT's 0.
        dropout: both dropout probabilities; None keeps those of the run.
    Raises: DataError if the path is neither, a file is missing or damaged, or a weight is missing.
    """
    import torch
    from transformers import BertForMaskedLM

    folder = checkpoint_of(path)
    if folder is None:
        raise DataError(
            f"{path} is neither a run with checkpoints nor one of them; expected RUN or"
            " RUN/checkpoints/step-NNNNNNN"
        )
    run = folder.parent.parent
    weights, manifest = _read(folder)
    config = _sizes(run, weights, tokenizer)
    settle(config, folder)
    set_dropout(config, dropout)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
        model = BertForMaskedLM(config)
    _fill(model, weights, folder)
    check_finite(model, str(folder))
    model.train(False)
    exported = _saved_with(run / names.EXPORT)
    return Loaded(
        model,
        str(folder),
        tokenizer_fingerprint=exported or _of_shards(run, manifest),
        tokenizer_source=str(run / names.EXPORT) if exported else None,
        shards_fingerprint=manifest.get("fingerprint"),
    )


def _of_shards(run: Path, manifest: dict[str, Any]) -> str | None:
    """Return the fingerprint of the tokenizer of a run's shards if they still exist unchanged."""
    shards = Path(_began(run).data.shards) / "manifest.json"
    try:
        found: dict[str, Any] = fsio.read_json(shards)
    except (OSError, ValueError):
        return None
    if found.get("fingerprint") is None or found["fingerprint"] != manifest.get("fingerprint"):
        return None
    fingerprint: str | None = found.get("tokenizer", {}).get("fingerprint")
    return fingerprint


def _saved_with(export: Path) -> str | None:
    """Return the fingerprint of the tokenizer of an export; None if it cannot be read."""
    try:
        return tokenizer_fingerprint_of(str(export)) if export.is_dir() else None
    except DataError as error:
        logger.warning("the tokenizer of %s cannot be read, and is not compared: %s", export, error)
        return None


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the student's tensors in a checkpoint by parameter name, after hashing every file.

    Raises: DataError if the manifest or a file is damaged.
    """
    return _read(folder)[0]


def set_dropout(config: BertConfig, dropout: float | None) -> None:
    """Set both dropout probabilities of a configuration, in place; None keeps them."""
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the student's tensors in a checkpoint by parameter name, and its manifest."""
    try:
        manifest = checkpoints.read_manifest(folder)
    except CheckpointError as error:
        raise DataError(f"{error}; name another checkpoint") from error
    shapes = manifest.get("shapes", {}).items()
    shapes = {k.removeprefix(_STUDENT): v for k, v in shapes if k.startswith(_STUDENT)}
    return joined(_parts(folder, manifest), shapes), manifest


def _parts(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file() or fsio.sha256_file(file) != entry["sha256"]:
            raise DataError(
                f"{file} is {'not what was written' if file.is_file() else 'missing'}; expected"
                f" sha256 {entry['sha256'][:12]} of {folder / names.MANIFEST}; name another"
            )
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no dict
                if key.startswith(_STUDENT):
                    yield key.removeprefix(_STUDENT), tensors.get_tensor(key)


def _sizes(
    run: Path, weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase | None
) -> BertConfig:
    """Return the student's configuration: config.yaml, with vocabulary and positions as saved.

    Tokens may have been added to the vocabulary, and rows may be longer than BERT's.
    """
    from transformers import BertConfig

    began = _began(run)
    student = began.model.student
    if isinstance(student, Geometry):
        pad_id = 0 if tokenizer is None else tokenizer.pad_token_id
        config = BertConfig(**asdict(student), pad_token_id=pad_id)
    else:
        config = _config_of_start(student, run / names.EXPORT)
    set_dropout(config, began.model.dropout)
    for key, name in (
        ("vocab_size", "word_embeddings"),
        ("max_position_embeddings", "position_embeddings"),
    ):
        found = weights.get(f"{_EMBEDDINGS}{name}.weight")
        if found is not None:
            setattr(config, key, found.shape[0])
    return config


def _began(run: Path) -> Config:
    path = run / names.CONFIG
    if not path.is_file():
        raise DataError(f"{path} is missing, and the student's sizes with it; put it back")
    return parse(Config, "fitb", ["--config", str(path)])


def _config_of_start(start: str, export: Path) -> BertConfig:
    """Return the configuration of the model that a student began as, else of its export."""
    from fitb.model.configuration import read_config

    earlier = checkpoint_of(start)
    if earlier:
        return _sizes(earlier.parent.parent, {}, None)
    for source in (start, str(export)):
        try:
            return read_config(source)
        except DataError:  # missing; if it is not a BERT, ConfigError passes
            continue
    raise DataError(
        f"the student began as {start!r}, which no longer exists, and {export} has no config.json;"
        " put one of them back: they hold the student's sizes"
    )


def _fill(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    tied = _TIED if model.config.tie_word_embeddings else ()
    expected = {n: t.shape for n, t in model.state_dict().items() if n not in tied}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise DataError(
            f"{folder} does not hold this student: {some(differing)} missing,"
            " unknown or of another shape; expected the config.yaml, fitb and transformers that"
            " saved it"
        )
    model.load_state_dict(weights, strict=False)
