"""Which positions of a model were trained: its own statement, else what its run or card tells.

A BERT has a vector for each position, and one that no row of its training reached is as random as
at the start: what the model says there is chance. So a model is trusted up to its trained length,
which stands in its config.json, and not up to `max_position_embeddings`.
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
KEY = "trained_length"  # of config.json, and of the manifest of a checkpoint
_LEAST = 3  # [CLS], one token, [SEP]
_CARD = "README.md"
_OUR_CARD = "Made by fitb"
_ROWS_OF_CARD = re.compile(r"^\| tokens in a row \| (\d+) \|$", re.MULTILINE)


def trained_length(config: BertConfig) -> int:
    """Return how many tokens of a row a model was trained on; without a statement, all it has."""
    return int(getattr(config, KEY, None) or config.max_position_embeddings)


def settle(config: BertConfig, source: str | Path) -> None:
    """Write into a configuration at which length its model was trained, in place.

    Args:
        config: as read from the source.
        source: folder or hub name, or a checkpoint of a run.
    Raises: DataError where config.json states something that cannot be.
    """
    most: int = config.max_position_embeddings
    stated: Any = None if checkpoint_of(source) else getattr(config, KEY, None)
    if stated is None:
        known = known_length(source)
        if known is None:
            logger.log(
                _level(source),
                "nothing tells at which length model %s was trained: taken for"
                " max_position_embeddings=%d; where its rows were shorter, export it and write"
                ' "%s": N into the config.json',
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
    """Return at which length a local model was trained; None where nothing tells. No torch needed.

    Runs and exports of before it was stated are held to the row length of the run or the card.
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
    """Begin with the teacher's position vectors, as many as both have, in place.

    Raises: ConfigError where the two differ in width.
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
    """Return a number that stands in a JSON file; None where there is none, or no such file."""
    try:
        found = fsio.read_json(path)
    except (OSError, ValueError):
        return None
    value = found.get(key) if isinstance(found, dict) else None
    return value if type(value) is int else None


def _of_card(folder: Path) -> int | None:
    """Return the row length that a card of fitb names."""
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
    """Return the row length of local shards, unless the checkpoint was trained on others."""
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
    """Return how loud not to know is: fitb's own models may be shorter than they say."""
    folder = Path(source)
    in_run = folder.name == names.EXPORT and names.is_run(folder.parent)
    if checkpoint_of(folder) or in_run or _OUR_CARD in _card(folder):
        return logging.WARNING
    return logging.INFO if folder.is_dir() and not _card(folder) else logging.DEBUG
