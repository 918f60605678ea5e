"""One text has one normal form."""

from __future__ import annotations

import unicodedata

import pytest

from fitb.corpus.normalize import normalize

HOSTILE = [
    "a\r\nb\rc\n\n d\te",
    "\x00nu\x07ll\x7f \x1b[0m",
    "cafe\u0301 \u00a0 na\u00efve",
    "e\u200b\u0301 zero\ufeff width",
    "line\u2028para\u2029next\x85nel",
    "\ud800 lone surrogate \ue000 private",
    "   ",
    "\u1e9b\u0323 \u212b \uac00",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_normal_form_is_nfc_single_spaced_visible_and_stable(text: str) -> None:
    normal = normalize(text)
    assert normalize(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == " ".join(normal.split())
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co"} for c in normal)
    normal.encode()


def test_line_ends_and_accents_do_not_make_two_texts() -> None:
    assert normalize("cafe\u0301\r\nbar") == normalize("caf\u00e9 bar") == "caf\u00e9 bar"


def test_control_characters_vanish_and_whitespace_becomes_one_space() -> None:
    assert normalize("a\x00b\t\n c\x1fd") == "ab c d"
