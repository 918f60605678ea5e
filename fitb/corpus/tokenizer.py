"""A WordPiece tokenizer like BERT's: trained here, or taken from a folder or the hub.

Added tokens (words of a field) come after the vocabulary and lie in tokenizer.json alone: what they
replace, and the tokenizer without them, follow from it.
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
_TRAINING_CHARS = 200_000_000  # documents come in random order, so the first are a fair sample
_MAX_WORD_CHARS = 100  # BERT's limit; a longer word is [UNK]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: Path,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
) -> None:
    """Train a WordPiece and write it as a Hugging Face folder.

    Args:
        texts: normalised; those after the first 200 million characters are not looked at.
        vocab_size: at least 256; fewer where the text does not give as many.
        folder: created; gets tokenizer.json, tokenizer_config.json and vocab.txt.
        lowercase, strip_accents: as BERT's normaliser has them; None does with the accents what it
            does with the case.
    Raises: DataError where there is no word to learn from.
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
    vocabulary: dict[str, int], lowercase: bool = True, strip_accents: bool | None = None
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
    """Count words as the tokenizer splits them; every different stretch is split once."""
    stretches: Counter[str] = Counter()
    seen_chars = 0
    for text in texts:
        stretches.update(text.split(" "))
        seen_chars += len(text)
        if seen_chars > _TRAINING_CHARS:
            break
    words: Counter[str] = Counter()
    for stretch, count in stretches.items():
        normal = tokenizer.normalizer.normalize_str(stretch)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            if len(word) <= _MAX_WORD_CHARS:
                words[word] += count
    return words


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or hub name, with the names of BERT's five tokens.

    Raises: DataError, as read_tokenizer does.
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
    """Copy a given tokenizer into a folder, in Hugging Face's format, its tokenizer.json verbatim.

    What added_tokens.json adds to it is then written into it.

    Args:
        name: Hugging Face folder or hub name; HF_HUB_OFFLINE is respected.
        folder: created.
    Raises: DataError where it cannot be loaded, is not fast, knows no word, or lacks one of the
        five tokens.
    """
    tokenizer = load_tokenizer(name)
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer {name!r} is not a fast one; give one that has tokenizer.json")
    missing = [token for token in SPECIAL_TOKENS if getattr(tokenizer, f"{token}_id") is None]
    if missing:
        raise DataError(
            f"tokenizer {name!r} has no {', '.join(missing)}; give one of the BERT family"
        )
    if len(tokenizer) <= len(SPECIAL_TOKENS):  # transformers 5 says nothing when files are missing
        raise DataError(
            f"tokenizer {name!r} has {len(tokenizer)} tokens and no words; its folder lacks"
            " tokenizer.json or vocab.txt"
        )
    tokenizer.save_pretrained(folder)
    original = find_file(name, "tokenizer.json")
    if original and Tokenizer.from_file(str(original)).get_vocab() == tokenizer.get_vocab():
        shutil.copyfile(original, folder / "tokenizer.json")  # else other files add to it


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """Return the manifest's entry: fingerprint, files, vocab_size (largest id + 1), special_ids.

    Where tokens were added, also `added`, as `added_tokens` gives them, and `base_fingerprint`, of
    the tokenizer without them.
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
    """Return the tokens of a file to add: one a line, in UTF-8; blank and repeated ones left out.

    A token is one word: it may hold punctuation (c++, state-of-the-art) but no space.

    Raises: DataError where there is no file, or with the number of the line that is no such token.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(f"tokens={path}: {error.strerror}; expected a file, one a line") from error
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
    """Add words to a tokenizer in place; those that are one piece already are left out.

    An added token is found where it stands as a word, in the form that the normaliser gives it: in
    any case where that lowercases. Every other word is cut as before. Adding again does nothing.

    Args:
        folder: Hugging Face folder of a fast tokenizer; only its tokenizer.json changes.
        tokens: each one word, as from `read_tokens`.
    Returns: the new ones, as `added_tokens`.
    Raises: DataError where the tokenizer would not find a token again, such as one of several Han
        characters, each of which is a word to BERT.
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
    """Return by id what was added: `token` (normalised), `id`, `pieces` (its ids before)."""
    base, added = _split(read_content(folder))
    if not added:
        return []
    encode = partial(for_text(json.dumps(base)).encode, add_special_tokens=False)
    return [
        {"token": token, "id": number, "pieces": encode(token).ids}
        for number, token in sorted((entry["id"], entry["content"]) for entry in added)
    ]


def _split(content: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a tokenizer.json without the tokens added after its vocabulary, and these."""
    size = len(content["model"]["vocab"])
    entries = content.get("added_tokens", [])
    added = [entry for entry in entries if entry["id"] >= size and not entry["special"]]
    return {**content, "added_tokens": [e for e in entries if e not in added]}, added
