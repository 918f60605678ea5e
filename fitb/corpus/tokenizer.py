"""WordPiece tokenizers like BERT's: training one, copying one, and adding tokens to it.

Added tokens (words of a domain) have the ids after the vocabulary and are only in tokenizer.json,
from which the subwords they replace and the tokenizer without them can be derived.
"""

from __future__ import annotations

import codecs
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fitb.base.errors import DataError
from fitb.base.fsio import write_atomic, write_json
from fitb.base.hub import find_file
from fitb.corpus.vocabulary import read_tokenizer
from fitb.corpus.wordpiece import CONTINUED, learn_pieces
from fitb.shards.tokenizer import (
    SPECIAL_TOKENS,
    content_fingerprint,
    for_text,
    open_tokenizer,
    read_content,
    tokenizer_fingerprint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_VOCAB_SIZE = 256

logger = logging.getLogger(__name__)
_TRAINING_CHARS = 200_000_000  # a fair sample, because documents are in random order
_MAX_WORD_CHARS = 100  # BERT's limit; a longer word is [UNK]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: Path,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
) -> None:
    """Train a WordPiece tokenizer and write it as a Hugging Face folder.

    Args:
        texts: normalised texts, of which the first 200 million characters are used.
        vocab_size: vocabulary size, at least 256; the result is smaller if the text is too short.
        folder: created; gets tokenizer.json, tokenizer_config.json and vocab.txt.
        lowercase: whether the normaliser lowercases.
        strip_accents: whether the normaliser removes accents; None: if it lowercases.
    Raises: DataError if the texts hold no word.
    """
    tokenizer = _bert_tokenizer({}, lowercase, strip_accents)
    words = _count_words(texts, tokenizer)
    if not words:
        raise DataError("no word to train a tokenizer on; give more text, or a tokenizer")
    pieces = learn_pieces(words, vocab_size - len(SPECIAL_TOKENS))
    vocabulary = [*SPECIAL_TOKENS.values(), *pieces]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = _bert_tokenizer(ids, lowercase, strip_accents)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_atomic(folder / "vocab.txt", "".join(f"{piece}\n" for piece in vocabulary))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "do_lower_case": lowercase,
        **({} if strip_accents is None else {"strip_accents": strip_accents}),
        **SPECIAL_TOKENS,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _bert_tokenizer(
    vocabulary: dict[str, int], lowercase: bool, strip_accents: bool | None
) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary,
            unk_token="[UNK]",
            max_input_chars_per_word=_MAX_WORD_CHARS,
            continuing_subword_prefix=CONTINUED,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer


def _count_words(texts: Iterable[str], tokenizer: Tokenizer) -> Counter[str]:
    """Count words as the tokenizer splits them; each distinct space-separated string once."""
    strings: Counter[str] = Counter()
    seen_chars = 0
    for text in texts:
        strings.update(text.split(" "))
        seen_chars += len(text)
        if seen_chars > _TRAINING_CHARS:
            break
    words: Counter[str] = Counter()
    for string, count in strings.items():
        normal = tokenizer.normalizer.normalize_str(string)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            if len(word) <= _MAX_WORD_CHARS:
                words[word] += count
    return words


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or hub name, with BERT's five special tokens set.

    Raises: as `read_tokenizer`.
    """
    tokenizer = read_tokenizer(str(source))
    vocabulary = tokenizer.get_vocab()
    unnamed = {
        name: token
        for name, token in SPECIAL_TOKENS.items()
        if getattr(tokenizer, name) is None and token in vocabulary
    }
    if unnamed:
        tokenizer.add_special_tokens(dict(unnamed))
    return tokenizer


def take_tokenizer(name: str, folder: Path) -> None:
    """Copy a tokenizer in Hugging Face's format, tokenizer.json verbatim.

    If added_tokens.json adds tokens to it, they are written into tokenizer.json.

    Args:
        name: Hugging Face folder or hub name; HF_HUB_OFFLINE is respected.
        folder: folder to create.
    Raises: DataError if it cannot be loaded, is not fast, or lacks a special token.
    """
    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer {name!r} is not fast; give one that has tokenizer.json")
    missing = [token for token in SPECIAL_TOKENS if getattr(tokenizer, f"{token}_id") is None]
    if missing:
        raise DataError(
            f"tokenizer {name!r} has no {', '.join(missing)}; give one of the BERT family"
        )
    tokenizer.save_pretrained(folder)
    original = find_file(name, "tokenizer.json")
    if original and Tokenizer.from_file(str(original)).get_vocab() == tokenizer.get_vocab():
        shutil.copyfile(original, folder / "tokenizer.json")  # else other files add to it


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """Return the manifest entry: fingerprint, files, vocab_size (largest id + 1), special_ids.

    If tokens were added, also `added`, from `added_tokens`, and `base_fingerprint`, the fingerprint
    of the tokenizer without them.
    """
    tokenizer, special = open_tokenizer(folder)
    entry = {
        "fingerprint": tokenizer_fingerprint(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "special_ids": asdict(special),
    }
    if added := added_tokens(folder):
        base = _split(read_content(folder))[0]
        entry |= {"added": added, "base_fingerprint": content_fingerprint(base)}
    return entry


def read_tokens(path: Path) -> list[str]:
    """Return the tokens to add from a UTF-8 file, one per line, without blank and repeated lines.

    A token is one word: it may hold punctuation (c++, state-of-the-art) but no space.

    Raises: DataError if the file does not exist, or with the number of a line that is not a token.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(
            f"tokens={path}: {error.strerror}; expected a file, one per line"
        ) from error
    tokens = []
    for number, line in enumerate(lines, 1):
        try:
            token = line.decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number} is not UTF-8; save the file in UTF-8") from error
        if len(token.split()) > 1 or token.startswith(CONTINUED):
            raise DataError(
                f"{path}:{number} is {token!r}; expected one word, without spaces and without"
                f" {CONTINUED} before it; correct or remove the line"
            )
        tokens.append(token)
    kept = list(dict.fromkeys(filter(None, tokens)))
    logger.info("tokens=%d blank_or_repeated=%d file=%s", len(kept), len(lines) - len(kept), path)
    return kept


def add_tokens(folder: Path, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Add words to a tokenizer in place, except those that already are one token.

    An added token matches a whole word after normalisation: in any case if the normaliser
    lowercases. All other words are tokenised as before. Adding a token again does nothing.

    Args:
        folder: Hugging Face folder of a fast tokenizer, of which only tokenizer.json changes.
        tokens: words, from `read_tokens`.
    Returns: the new tokens, as `added_tokens`.
    Raises: DataError if the tokenizer could not match a token, such as one of several Han
        characters, each of which is a word for BERT.
    """
    tokenizer, special = open_tokenizer(folder)
    content, vocabulary = read_content(folder), tokenizer.get_vocab()
    next_id, new = max(vocabulary.values()) + 1, dict[str, int]()
    for token in tokens:
        if token in vocabulary:
            continue
        normal = tokenizer.normalizer.normalize_str(token) if tokenizer.normalizer else token
        ids = tokenizer.encode(normal, add_special_tokens=False).ids
        if not ids or normal.split() != [normal] or normal.startswith(CONTINUED):
            raise DataError(f"token {token!r} is no single word for this tokenizer; remove it")
        if len(ids) > 1 or ids[0] == special.unk:
            new.setdefault(normal, next_id + len(new))
    form = {"single_word": True, "lstrip": False, "rstrip": False, "normalized": True}
    content["added_tokens"] += [
        {"id": number, "content": token, **form, "special": False} for token, number in new.items()
    ]
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    extended = for_text(text)
    for token, number in new.items():
        if number not in extended.encode(f"a {token} b", add_special_tokens=False).ids:
            raise DataError(f"token {token!r} is not found in text by this tokenizer; remove it")
    if new:
        write_atomic(folder / "tokenizer.json", text)
    logger.info("tokens_added=%d tokens_known=%d", len(new), len(tokens) - len(new))
    return [entry for entry in added_tokens(folder) if entry["token"] in new]


def added_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the added tokens by id: `token` (normalised), `id`, `pieces` (subword ids before)."""
    base, added = _split(read_content(folder))
    if not added:
        return []
    encode = partial(for_text(json.dumps(base)).encode, add_special_tokens=False)
    return [
        {"token": token, "id": number, "pieces": encode(token).ids}
        for number, token in sorted((entry["id"], entry["content"]) for entry in added)
    ]


def _split(content: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split a tokenizer.json into one without added tokens, and the entries of added tokens."""
    size = len(content["model"]["vocab"])
    entries = content.get("added_tokens", [])
    added = [entry for entry in entries if entry["id"] >= size and not entry["special"]]
    return {**content, "added_tokens": [e for e in entries if e not in added]}, added
