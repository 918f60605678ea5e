"""Loading and comparing tokenizers of other people's models; ambiguous ones are refused.

A model folder holds its vocabulary as tokenizer.json, as vocab.txt with or without settings, or for
a tokenizer written in Python, and more tokens in added_tokens.json. Two tokenizers are equal if
they turn every text into the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import normalizers

from fitb.base.errors import DataError
from fitb.base.hub import find_file, reading
from fitb.corpus.wordpiece import bare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EDGE_CASES = (
    "See https://example.org/a_b/c-d?x=1&y=%20#top or mail first.last@example.org.",
    "os.path.join(self.__dict__, 'fooBar') != snake_case_2[i] # ##done",
    "state-of-the-art, mother-in-law's rock-'n'-roll \u2013 well \u2014 non\u2011breaking",
    "\u6211\u4eec\u5728\u5317\u4eac, \u6771\u4eac\u3068\u304b\u306a, \ud55c\uad6d\uc5b4 text",
    "Caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul Stra\u00dfe \ufb01n",
    "ok \U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ee\U0001f1f9 \u2764\ufe0f!",
    "tab\there\u00a0and\u200bthere, soft\u00adhyphen, 3.14159e-10, $1,000.50, \u20ac5",
)
_WHOLE, _PIECES, _SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
# Share of subwords that the normaliser can never produce. BERT's uncased vocabulary has none among
# 29,523, a cased one a third, an alphabet with accents less than this.
_MOST_LOST = 0.01
_CONFIG = "config.json"  # of the model; its model_type implies a tokenizer class
_NAMED = 3  # examples in a message


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub name from its files, without running its code.

    AutoTokenizer rebuilds the normaliser of a BERT tokenizer from tokenizer_config.json, where a
    missing `do_lower_case` turns a cased tokenizer into a lowercasing one; it is used only if there
    is no tokenizer.json.

    Raises: DataError if there is no tokenizer, it needs its own code, its files contradict each
        other, or the default of a missing setting contradicts its vocabulary.
    """
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

    with reading("tokenizer", source, _WHOLE, _PIECES):
        whole, pieces, settings = (find_file(source, name) for name in (_WHOLE, _PIECES, _SETTINGS))
        said = json.loads(settings.read_text(encoding="utf-8")) if settings else {}
        if whole is None and "auto_map" in said:
            raise DataError(
                f"tokenizer {source!r} needs its own code (auto_map in {_SETTINGS}), which is never"
                f" run; expected {_WHOLE}; save it as a fast tokenizer, or name another"
            )
        kind: Any = PreTrainedTokenizerFast if whole else AutoTokenizer
        if whole is None and pieces and "tokenizer_class" not in said:
            config = find_file(source, _CONFIG)
            model = json.loads(config.read_text(encoding="utf-8")) if config else {}
            if model.get("model_type") is None:
                kind = BertTokenizer  # vocab.txt alone means BERT, as in TinyBERT's releases
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(source, trust_remote_code=False)
        if whole is None:
            _check_settings(source, tokenizer, said)
        elif pieces:
            _check_pieces(source, tokenizer, pieces)
    return tokenizer


def _check_settings(
    source: str, tokenizer: PreTrainedTokenizerBase, said: Mapping[str, Any]
) -> None:
    """Raise DataError if the default of a missing setting contradicts the vocabulary."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers 5 does not report it
        raise DataError(
            f"tokenizer {source!r} has {len(tokenizer)} tokens and no words: it holds no {_WHOLE},"
            f" and no {_PIECES} that its class reads; copy one of them there"
        )
    pieces = list(_word_pieces(tokenizer))
    for key, on, rule in _rules(tokenizer):
        lost = [p for p in pieces if rule.normalize_str(p).strip() != p] if on else []
        if said.get(key) is None and lost and len(lost) >= _MOST_LOST * len(pieces):
            raise DataError(
                f"tokenizer {source!r}: its {_SETTINGS} lacks {key}, and with the default, true,"
                f" {len(lost)} of the {len(pieces)} subwords of its vocabulary, such as"
                f' {_some(lost)}, could never be produced; add {{"{key}": false}} there, or true'
                " if the model was trained with it"
            )


def _rules(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[str, bool, normalizers.BertNormalizer]]:
    """Yield the settings of a BERT normaliser that change letters: key, value, normaliser."""
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    lower = bool(getattr(tokenizer, "do_lower_case", False))
    strip = getattr(tokenizer, "strip_accents", None)
    han = bool(getattr(tokenizer, "tokenize_chinese_chars", False))
    for key, on, name in (
        ("do_lower_case", lower, "lowercase"),
        ("strip_accents", lower if strip is None else strip, "strip_accents"),
        ("tokenize_chinese_chars", han, "handle_chinese_chars"),
    ):
        yield key, on, normalizers.BertNormalizer(**(off | {name: True}))


def _word_pieces(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the subwords of a vocabulary by id, without ##, special and [unused] tokens."""
    special, vocabulary = set(tokenizer.all_special_tokens), tokenizer.get_vocab()
    for piece in sorted(vocabulary, key=vocabulary.__getitem__):
        if piece not in special and not _in_brackets(piece):
            yield bare(piece)


def _in_brackets(piece: str) -> bool:
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


def _check_pieces(source: str, tokenizer: PreTrainedTokenizerBase, pieces: Path) -> None:
    """Raise DataError if vocab.txt is not the vocabulary of the tokenizer.json beside it."""
    if type(tokenizer.backend_tokenizer.model).__name__ != "WordPiece":
        return  # its vocab.txt has another format
    with pieces.open(encoding="utf-8") as lines:
        listed = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    vocabulary = tokenizer.get_vocab()
    other = [
        piece
        for piece, number in listed.items()
        if piece and not _in_brackets(piece) and vocabulary.get(piece) != number
    ]
    if other:
        raise DataError(
            f"tokenizer {source!r} has two vocabularies: {len(other)} subwords of {_PIECES}, such"
            f" as {_some(other)}, have another id in {_WHOLE}, or none; remove the file that is not"
            " the model's"
        )


def difference(
    ours: PreTrainedTokenizerBase,
    theirs: PreTrainedTokenizerBase,
    added: Mapping[str, int] | None = None,
) -> str | None:
    """Describe how a text could become different ids; None if it cannot.

    Vocabularies must be equal. The rules of two fast tokenizers must be equal too, except for how
    they are written and for special tokens, which no text holds. A tokenizer in Python is compared
    on EDGE_CASES, and on its own vocabulary in lower and upper case.

    Args:
        ours: tokenizer of a model, described by the result.
        theirs: tokenizer of the shards.
        added: ids of tokens that ours lacks but its model has embedding rows for.
    """
    added = added or {}
    vocabularies = {**ours.get_vocab(), **added}, theirs.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        return _other_pieces(*vocabularies)
    if ours.is_fast and theirs.is_fast:
        mine, other = (_canonical(json.loads(t.backend_tokenizer.to_str())) for t in (ours, theirs))
        other["added_tokens"] = {
            token: form for token, form in other["added_tokens"].items() if token not in added
        }
        for part, value in mine.items():
            if value != other[part]:
                return f"its {part} is {_short(value)}, that of the shards {_short(other[part])}"
        return None
    words = " ".join(_word_pieces(theirs))
    for text in [*EDGE_CASES, words, words.lower(), words.upper()]:
        if _ids(ours, text) != _ids(theirs, text):
            differing = (word for word in text.split() if _ids(ours, word) != _ids(theirs, word))
            return f"it splits {next(differing, text)!r} into other subwords"
    return None


def _other_pieces(mine: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    both = {**mine, **theirs}
    other = [piece for piece in both if mine.get(piece) != theirs.get(piece)]
    other.sort(key=both.__getitem__)
    examples = ", ".join(
        f"{piece!r} is {mine.get(piece, 'none')} there, {theirs.get(piece, 'none')} in the shards"
        for piece in other[:_NAMED]
    )
    return f"{len(other)} subwords have other ids ({examples})"


def _canonical(content: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a tokenizer.json that decide the ids, in a canonical form."""
    model = {
        key: value
        for key, value in content["model"].items()
        if key != "vocab" or not isinstance(value, dict)  # compared before
    }
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        "model": model,
        "normalizer": _flat(content["normalizer"], "normalizers"),
        "pre_tokenizer": _flat(content["pre_tokenizer"], "pretokenizers"),
        "added_tokens": {
            entry["content"]: [entry[flag] for flag in flags]
            for entry in content["added_tokens"]
            if not entry["special"]
        },
    }


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [each for one in step[inner] for each in _flat(one, inner)]
    if step["type"] == "BertNormalizer" and step["strip_accents"] is None:
        return [step | {"strip_accents": step["lowercase"]}]
    return [step]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _some(pieces: list[str]) -> str:
    return ", ".join(map(repr, pieces[:_NAMED]))


def _short(value: Any, most: int = 200) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[:most] + "..."
