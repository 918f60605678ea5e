"""The tokenizer of a shard set: opening it for whole documents, special ids, fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fitb.base.errors import DataError
from fitb.base.fsio import read_json, sha256_json

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the five tokens that BERT needs."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def open_tokenizer(folder: Path) -> tuple[Tokenizer, SpecialIds]:
    """Load a tokenizer for whole documents, without truncation, padding and special tokens in text.

    "[MASK]" or "[SEP]" in a text is tokenised as characters, not as the special token.

    Raises: DataError if a file is missing or a special token has no id.
    """
    try:
        tokenizer = for_text((folder / "tokenizer.json").read_text(encoding="utf-8"))
        settings = read_json(folder / "tokenizer_config.json")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing; copy the tokenizer folder again") from error
    ids: dict[str, int] = {}
    for name in SPECIAL_TOKENS:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        number = None if token is None else tokenizer.token_to_id(token)
        if number is None:
            raise DataError(f"{folder} has no id for {name}={token!r}; add it to its files")
        ids[name.removesuffix("_token")] = number
    return tokenizer, SpecialIds(**ids)


def for_text(content: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, with the options of `open_tokenizer`."""
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_content(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's tokenizer.json.

    Raises: DataError if it is missing or damaged.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        content: dict[str, Any] = read_json(path)
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is missing or damaged: {error}; copy the folder again") from error
    return content


def content_fingerprint(content: dict[str, Any]) -> str:
    """Return the sha256 of a tokenizer's canonical JSON.

    Truncation and padding, which callers set as they need, are left out.
    """
    return sha256_json({k: v for k, v in content.items() if k not in ("truncation", "padding")})


def tokenizer_fingerprint(folder: Path) -> str:
    """Return the `content_fingerprint` of the tokenizer in a folder; raise as `read_content`."""
    return content_fingerprint(read_content(folder))
