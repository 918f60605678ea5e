"""WordPiece: learning a vocabulary from word counts, and joining subwords into text.

Training is deterministic. The WordPiece trainer of `tokenizers` numbers continuing subwords in the
order of a hash table with a random seed, and breaks ties between merges by those numbers, so two
runs give two vocabularies. Here every character has one private-use symbol for the begin of a word
and another for its inside; on words spelt in these symbols the BPE trainer has no ties to break.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

CONTINUED = "##"  # prefix of a subword that continues a word
_SYMBOLS = 2000  # characters in a vocabulary; more if they are frequent, as in Chinese
_FREQUENT = 1e-6  # share of all characters
_MIN_FREQUENCY = 2
_PRIVATE = 0xF0000  # first code point of a private-use plane, which normalised text lacks
_CAPITAL = re.compile("[A-Z]")
_NO_SPACE_BEFORE = set(".,;:!?)]}%'\u2019-/_@")
_NO_SPACE_AFTER = set("([{'\u2019-/_@$#")
# Scripts without spaces, which BERT splits into single characters: kana and Han.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def learn_pieces(words: Counter[str], num_pieces: int) -> list[str]:
    """Return the subwords: single characters, sorted, then merges in the order of learning.

    If the text gives too few merges, more characters fill the vocabulary.

    Args:
        words: count of each word.
        num_pieces: number of subwords to learn.
    """
    characters: Counter[tuple[str, bool]] = Counter()
    for word, count in words.items():
        for place, character in enumerate(word):
            characters[character, place > 0] += count
    room = 0
    while True:
        symbols = _symbols(characters, num_pieces, room)
        pieces = _merged(words, symbols, num_pieces)
        if len(pieces) >= num_pieces or characters.keys() <= set(symbols):
            return pieces
        room += num_pieces - len(pieces)


def _merged(words: Counter[str], symbols: list[tuple[str, bool]], num_pieces: int) -> list[str]:
    """Return the symbols as subwords, and merges of them."""
    code = {symbol: chr(_PRIVATE + number) for number, symbol in enumerate(symbols)}
    spelt = Tokenizer(models.BPE())
    spelt.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=num_pieces,
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=list(code.values()),
        show_progress=False,
    )
    spelt.train_from_iterator(_spell(words, code), trainer)
    learnt = sorted(spelt.get_vocab().items(), key=lambda item: item[1])
    return [_unspell(piece, symbols) for piece, _ in learnt]


def _symbols(
    counts: Counter[tuple[str, bool]], num_pieces: int, room: int
) -> list[tuple[str, bool]]:
    """Return the (character, inside a word) pairs of the vocabulary, sorted."""
    # Printable ASCII is always included, so that no ASCII word is unknown. The most frequent others
    # follow: up to a quarter of the vocabulary and 2,000; frequent ones up to half of what ASCII
    # leaves; and `room` more.
    plain = string.ascii_lowercase + string.digits
    if any(_CAPITAL.search(character) for character, _ in counts):
        plain += string.ascii_uppercase
    chosen = {(character, inside) for character in plain for inside in (False, True)}
    chosen |= {(character, False) for character in string.punctuation}
    half = len(chosen) + (num_pieces - len(chosen)) // 2
    least = max(_MIN_FREQUENCY, _FREQUENT * counts.total())
    for symbol, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        most = half if count >= least else min(_SYMBOLS, num_pieces // 4)
        if len(chosen) >= most + room:
            break
        chosen.add(symbol)
    return sorted(chosen)


def _spell(words: Counter[str], code: dict[tuple[str, bool], str]) -> Iterator[str]:
    for word, count in words.items():
        symbols = [code.get((character, place > 0)) for place, character in enumerate(word)]
        if None in symbols:  # a rare character makes the word [UNK] for the model, too
            continue
        spelt = "".join(symbols) + " "  # type: ignore[arg-type]
        for begin in range(0, count, 10_000):
            yield spelt * min(10_000, count - begin)


def _unspell(piece: str, symbols: list[tuple[str, bool]]) -> str:
    pairs = [symbols[ord(character) - _PRIVATE] for character in piece]
    return (CONTINUED if pairs[0][1] else "") + "".join(character for character, _ in pairs)


def continues(piece: str) -> bool:
    """Whether a subword continues a word."""
    return piece.startswith(CONTINUED) and piece != CONTINUED


def bare(piece: str) -> str:
    """Return a subword without its ## prefix."""
    return piece.removeprefix(CONTINUED) if continues(piece) else piece


def join(pieces: Iterable[str]) -> str:
    """Join subwords into readable text; a leading ## is dropped."""
    text = ""
    for piece in pieces:
        text = append(text, piece)
    return text


def append(text: str, piece: str) -> str:
    """Append a subword to a text made of subwords."""
    apart = not continues(piece) and text and not touch(text, piece)
    return f"{text} {piece}" if apart else text + bare(piece)


def touch(text: str, word: str) -> bool:
    """Whether a word follows a text without a space."""
    last, first = text[-1], word[0]
    if _UNSPACED.match(last) and _UNSPACED.match(first):
        return True
    if last in ".," and first.isdigit() and text[-2:-1].isdigit():  # 3.5 and 1,000
        return True
    return first in _NO_SPACE_BEFORE or last in _NO_SPACE_AFTER
