"""Trained length of a model: from its config.json, else from its run or model card.

Position embeddings beyond the longest row of training are random, and so are the predictions there.
So the limit of a model is `trained_length` in its config.json, not `max_position_embeddings`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base import fsio
from fitb.base.errors import ConfigError, DataError, FitbError
from fitb.config import Config, Geometry
from fitb.config.parser import parse
from fitb.rundir import names
from fitb.rundir.checkpoints import checkpoint_of
from fitb.shards.manifest import read_manifest
from fitb.shards.remote import is_remote, local_folder

if TYPE_CHECKING:
    from transformers import BertConfig, BertForMaskedLM

logger = logging.getLogger(__name__)
KEY = "trained_length"  # in config.json, and in the manifest of a checkpoint
_LEAST = 3  # [CLS], one token, [SEP]
_CARD = "README.md"
_OUR_CARD = "Made by fitb"
_ROWS_OF_CARD = re.compile(r"^\| tokens in a row \| (\d+) \|$", re.MULTILINE)


def trained_length(config: BertConfig) -> int:
    """Return the tokens in a row that a model was trained on; by default all its positions."""
    return int(getattr(config, KEY, None) or config.max_position_embeddings)


def settle(config: BertConfig, source: str | Path) -> None:
    """Set the trained length of a configuration, in place.

    Args:
        config: configuration read from the source.
        source: folder or hub name, or a checkpoint of a run.
    Raises: DataError if config.json has an impossible trained length.
    """
    most: int = config.max_position_embeddings
    stated: Any = None if checkpoint_of(source) else getattr(config, KEY, None)
    if stated is None:
        known = known_length(source)
        if known is None:
            logger.log(
                _level(source),
                "the trained length of model %s is unknown: using max_position_embeddings=%d; if"
                ' its rows were shorter, export it and add "%s": N to config.json',
                source,
                most,
                KEY,
            )
        stated = min(known or most, most)
    elif type(stated) is not int or not min(_LEAST, most) <= stated <= most:
        raise DataError(
            f"model {str(source)!r}: {KEY}={stated!r} in config.json; expected a number of tokens"
            f" from {_LEAST} to max_position_embeddings={most}; correct it, or remove the key"
        )
    setattr(config, KEY, stated)


def known_length(source: str | Path) -> int | None:
    """Return the trained length of a local model; None if it is unknown. Imports no torch.

    For runs and exports that do not state it, it is the row length of the run or the model card.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint:
        run = checkpoint.parent.parent
        return (
            _stated(checkpoint / names.MANIFEST)
            or _stated(run / names.EXPORT / "config.json")
            or _of_run(run)
        )
    folder = Path(source)
    return (
        _stated(folder / "config.json")
        or (_of_run(folder.parent) if folder.name == names.EXPORT else None)
        or _of_card(folder)
    )


def take_positions(student: BertForMaskedLM, teacher: BertForMaskedLM) -> None:
    """Copy the teacher's position embeddings, as many as both have, in place.

    Raises: ConfigError if hidden sizes differ.
    """
    import torch

    ours, theirs = (model.bert.embeddings.position_embeddings for model in (student, teacher))
    if ours.embedding_dim != theirs.embedding_dim:
        raise ConfigError(
            f"model.positions=teacher: the student is {ours.embedding_dim} wide, the teacher"
            f" {theirs.embedding_dim}; use model.positions=random, or"
            f" model.student.hidden_size={theirs.embedding_dim}"
        )
    both = min(ours.num_embeddings, theirs.num_embeddings)
    with torch.no_grad():
        ours.weight[:both] = theirs.weight[:both]


def _stated(path: Path, key: str = KEY) -> int | None:
    """Return an integer of a JSON file; None if the key or the file is missing."""
    try:
        found = fsio.read_json(path)
    except (OSError, ValueError):
        return None
    value = found.get(key) if isinstance(found, dict) else None
    return value if type(value) is int else None


def _of_card(folder: Path) -> int | None:
    """Return the row length in a model card written by fitb."""
    text = _card(folder)
    found = _ROWS_OF_CARD.search(text) if _OUR_CARD in text else None
    return int(found[1]) if found else None


def _card(folder: Path) -> str:
    try:
        return (folder / _CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _of_run(run: Path) -> int | None:
    """Return the row length of a run, or what its student could before where that is more."""
    if not names.is_run(run):
        return None
    try:
        config = parse(Config, "fitb", ["--config", str(run / names.CONFIG)])
    except FitbError:
        return None
    rows = _of_shards(config.data.shards, checkpoint_of(run)) or _of_card(run / names.EXPORT)
    start = config.model.student
    if rows is None or isinstance(start, Geometry):
        return rows
    could = known_length(start) or _stated(Path(start) / "config.json", "max_position_embeddings")
    return max(rows, could or 0)


def _of_shards(shards: str, checkpoint: Path | None) -> int | None:
    """Return the row length of local shards if the checkpoint was trained on them."""
    if is_remote(shards):
        return None
    try:
        manifest = read_manifest(local_folder(shards))
        trained_on = fsio.read_json(checkpoint / names.MANIFEST) if checkpoint else {}
    except (FitbError, OSError, ValueError):
        return None
    same = trained_on.get("fingerprint", manifest["fingerprint"]) == manifest["fingerprint"]
    return int(manifest["length"]) if same else None


def _level(source: str | Path) -> int:
    """Return the log level of an unknown length: for fitb's own models it is likely too long."""
    folder = Path(source)
    in_run = folder.name == names.EXPORT and names.is_run(folder.parent)
    if checkpoint_of(folder) or in_run or _OUR_CARD in _card(folder):
        return logging.WARNING
    return logging.INFO if folder.is_dir() and not _card(folder) else logging.DEBUG
