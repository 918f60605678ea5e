"""One text has one normal form, and a document is dropped by the first rule that it breaks."""

import random
import sys
import unicodedata

import pytest

from fitb.base.errors import ConfigError
from fitb.corpus.clean import CleanConfig, Cleaned, Cleaner

DROPPED = {"Cc", "Cf", "Cs", "Co"}
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
    "\u00a8 \u00b4a\u00b8 \u2017",  # NFKC turns these into a space and a mark
    "\ufdfa \ufdfb",  # NFKC turns these into several words
    "a\u1100\u200d\u1161\u11a8",
    "\x1c\x1d\x1e\x1f\x0b\x0c",
    "\ufb01ne \uff21\uff22 x\u00b2 \u2460",
]
ENGLISH = "The reader opens the book and reads the first page of the story again and again."
GERMAN = "Der Leser schlaegt das Buch auf und liest die erste Seite der Geschichte noch einmal."


@pytest.fixture
def html():
    pytest.importorskip("trafilatura", exc_type=ImportError)
    return Cleaner(CleanConfig(html=True))


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_every_character_alone_and_between_marks_has_a_stable_normal_form(form):
    cleaner = Cleaner(CleanConfig(unicode=form))
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character) != "Cn":  # five of six are not assigned
            normal = cleaner.clean(f"a\u0301{character}\u0301").text
            assert cleaner.clean(normal).text == normal, ascii(character)


def naive_normal_form(text, form):
    """The normal form of a text and the steps that change it, each by its definition."""
    seen = "".join(
        " " if c.isspace() else "" if unicodedata.category(c) in DROPPED else c for c in text
    )
    formed = unicodedata.normalize(form, seen)
    odd_space = any(c.isspace() and c != " " for c in text)
    changes = {
        "control": any(unicodedata.category(c) in DROPPED and not c.isspace() for c in text),
        "unicode": formed != seen,
        "whitespace": odd_space or " ".join(formed.split()) != formed,
    }
    return " ".join(formed.split()), {step for step, changed in changes.items() if changed}


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_each_step_counts_the_documents_that_it_changed(form):
    draw = random.Random(2)
    letters = "".join(HOSTILE) + "\u0301\u0323\u1161" + "abcdefgh" * 8
    texts = HOSTILE + ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(3000)]
    for text in texts:
        cleaner = Cleaner(CleanConfig(unicode=form))
        normal, changes = naive_normal_form(text, form)
        assert cleaner.clean(text).text == normal
        assert cleaner.changed == dict.fromkeys(changes, 1), ascii(text)
        assert cleaner.clean(normal).text == normal


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" \n\x00", "empty"),
        ("abc", "too_short"),
        ("a  \n\n  bc", None),
        ("abcdefghijk", "too_long"),
        ("xxxx", "keep"),
        ("a 42 z", "drop"),
    ],
)
def test_a_document_is_dropped_by_the_first_rule_that_it_breaks(text, rule):
    config = CleanConfig(min_chars=4, max_chars=10, keep="[a-c]", drop=r"\d\d")
    assert Cleaner(config).clean(text).dropped == rule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_chars": 0}, "min_chars is 0"),
        ({"min_chars": 5, "max_chars": 4}, "max_chars is 4.*min_chars=5"),
        ({"language_threshold": 0.0}, "language_threshold is 0"),
        ({"keep": "("}, r"keep is '\('"),
        ({"drop": "[a"}, r"drop is '\[a'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**options)


@pytest.mark.parametrize(
    ("option", "library"),
    [
        ({"ftfy": True}, "ftfy"),
        ({"html": True}, "trafilatura"),
        ({"language": "en"}, "py3langid.langid"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(option, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, library.split(".")[0], None)
    with pytest.raises(ConfigError, match=r"pip install 'fitb\[clean\]'"):
        Cleaner(CleanConfig(**option))
    Cleaner(CleanConfig())


def test_language_is_told_from_text_and_an_unknown_code_is_refused():
    cleaner = Cleaner(CleanConfig(language="en"))
    assert cleaner.clean(ENGLISH).dropped is None
    assert cleaner.clean(GERMAN).dropped == "language"
    assert cleaner.clean("?! 123").dropped == "language"
    sure = Cleaner(CleanConfig(language="en", language_threshold=1.0))
    assert sure.clean("reads the book").dropped == "language"
    with pytest.raises(ConfigError, match="'eng' is unknown.*nearest: en"):
        Cleaner(CleanConfig(language="eng"))


def test_ftfy_mends_what_is_broken_and_leaves_typography_alone():
    cleaner = Cleaner(CleanConfig(ftfy=True))
    good = "\u201cna\u00efve\u201d \ufb01ne \uff21"
    broken = "na\u00efve caf\u00e9".encode().decode("latin-1")
    assert cleaner.clean(good).text == good
    assert cleaner.changed["ftfy"] == 0
    assert cleaner.clean(broken).text == "na\u00efve caf\u00e9"
    assert cleaner.changed["ftfy"] == 1
    assert cleaner.clean("a\ud800 &amp; b \x00").text == "a\ufffd & b"


def test_html_keeps_the_main_text_and_drops_boilerplate(html):
    body = "".join(f"<p>{number} {ENGLISH} {ENGLISH}</p>" for number in range(8))
    page = (
        "<!doctype html><html><head><title>t</title></head><body><nav><a href='/'>Navigation</a>"
        f"</nav><article>{body}</article><footer>Copyright</footer></body></html>"
    )
    cleaned = html.clean(page)
    assert cleaned.dropped is None
    assert all(f"{number} {ENGLISH}" in cleaned.text for number in range(8))
    assert not any(word in cleaned.text for word in ("Navigation", "Copyright", "<p>"))
    assert html.changed["html"] == 1


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<b>Hi</b> there", Cleaned("Hi there", None)),
        ("<p>One &amp; two</p><p>three</p>", Cleaned("One & two three", None)),
        ("<p>lone \ud800 and \x00 null</p>", Cleaned("lone and null", None)),
        ("<p> </p>", Cleaned("", "html_empty")),
        ("<!-- only a comment -->", Cleaned("", "html_empty")),
        ("a < b and b > c &amp; so on", Cleaned("a < b and b > c &amp; so on", None)),
        ("", Cleaned("", "empty")),
    ],
)
def test_fragments_of_html_give_their_text_and_plain_text_stays(html, text, cleaned):
    assert html.clean(text) == cleaned


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_joiners_of_persian_and_indic_spelling_are_kept_by_option(form):
    text = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0915\u094d\u200d\u0937 a\u00adb"
    kept = Cleaner(CleanConfig(form, joiners=True)).clean(text).text
    assert kept == unicodedata.normalize(form, text.replace("\u00ad", ""))
    assert Cleaner(CleanConfig(form, joiners=True)).clean(kept).text == kept
    assert not {"\u200c", "\u200d"} & set(Cleaner(CleanConfig(form)).clean(text).text)
