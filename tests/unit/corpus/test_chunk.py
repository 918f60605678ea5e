"""Rows keep every token of every document, in order, and cut no word."""

import numpy as np
import pytest

from fitb.corpus import chunk
from fitb.corpus.chunk import concatenate, pack, token_streams, windows
from fitb.shards.documents import documents_at
from fitb.shards.tokenizer import open_tokenizer
from fitb.shards.write import Columns

LENGTHS = (8, 9, 16, 33, 64)


@pytest.fixture(scope="module")
def opened(tokenizer_folder):
    return open_tokenizer(tokenizer_folder)


def streams_of(opened, texts):
    return [stream for stream, _ in token_streams(texts, *opened) if stream]


def packed(opened, texts, length):
    return concatenate(list(pack(streams_of(opened, texts), length, opened[1])))


def documents_of(rows, special):
    return documents_at(rows.input_ids, rows.doc_begin, sep_id=special.sep, pad_id=special.pad)


def ordinary(rows, special):
    return ~np.isin(rows.input_ids, (special.pad, special.cls, special.sep))


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_in_order_give_back_every_token_word_start_offset_and_document(opened, texts, length):
    tokenizer, special = opened
    rows = packed(opened, texts, length)
    kept = ordinary(rows, special)
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [number for encoding in encodings for number in encoding.ids]
    starts = [
        place == 0 or encoding.word_ids[place] != encoding.word_ids[place - 1]
        for encoding in encodings
        for place in range(len(encoding))
    ]
    offsets = [pair for encoding in encodings for pair in encoding.offsets]
    assert rows.input_ids[kept].tolist() == ids
    assert rows.word_starts[kept].tolist() == starts
    found = zip(rows.offset_begin[kept].tolist(), rows.offset_end[kept].tolist(), strict=True)
    assert list(found) == offsets
    for column in (rows.word_starts, rows.offset_begin, rows.offset_end):
        assert not column[~kept].any()
    numbers = documents_of(rows, special)
    assert np.array_equal(numbers >= 0, kept)
    expected = [n for n, encoding in enumerate(encodings) for _ in range(len(encoding))]
    assert np.array_equal(numbers[kept], expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_start_with_cls_end_with_sep_and_only_the_last_is_padded(opened, texts, length):
    _, special = opened
    rows = packed(opened, texts, length)
    assert (rows.input_ids[:, 0] == special.cls).all()
    assert (rows.input_ids[:, 1:] != special.cls).all()
    assert (rows.input_ids[:-1, -1] == special.sep).all()
    assert (rows.input_ids[:-1] != special.pad).all()
    last = rows.input_ids[-1]
    content = last[last != special.pad]
    assert content[-1] == special.sep
    assert (last[: len(content)] == content).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_only_a_word_of_more_than_a_quarter_row_is_ever_cut(opened, texts, length):
    _, special = opened
    rows = packed(opened, texts, length)
    cut = ~rows.word_starts[:, 1]
    assert not cut[0]
    for number in np.flatnonzero(cut):
        head = rows.word_starts[number - 1]
        tokens = ordinary(rows, special)[number - 1]
        assert tokens.nonzero()[0][-1] - head.nonzero()[0][-1] >= length // 4
    if length >= 64:
        assert not cut.any()
    fill = (rows.input_ids[:-1, ::-1] == special.sep).argmin(axis=1)
    assert fill.max() <= length // 4 + 1


@pytest.mark.parametrize("batch_chars", [1, 1000])
def test_the_size_of_a_batch_does_not_change_the_rows(opened, texts, monkeypatch, batch_chars):
    whole = packed(opened, texts, 16)
    monkeypatch.setattr(chunk, "_BATCH_CHARS", batch_chars)
    parts = packed(opened, texts, 16)
    for name in Columns.__dataclass_fields__:
        assert (getattr(whole, name) == getattr(parts, name)).all()


@pytest.mark.parametrize("num_words", range(1, 20))
def test_a_document_of_any_size_near_a_row_fits_without_an_empty_row(opened, num_words):
    _, special = opened
    rows = packed(opened, [" ".join(["the"] * num_words)], 8)
    assert len(rows) == -(-num_words // 6)
    assert ordinary(rows, special).sum() == num_words


def test_a_single_place_left_after_a_document_takes_a_separator(opened):
    _, special = opened
    rows = packed(opened, ["the the the the the", "the the"], 8)
    assert rows.input_ids[0, -2:].tolist() == [special.sep, special.sep]
    assert rows.doc_begin.tolist() == [0, 1]


def test_a_word_longer_than_a_row_is_cut_and_its_rest_starts_no_word(opened):
    rows = packed(opened, ["the " + "zq9" * 30 + " the"], 16)
    assert len(rows) > 2
    assert rows.word_starts.sum() == 3


def test_texts_without_tokens_get_no_ordinal(opened):
    rows = packed(opened, ["the", "\u200b", "", "of"], 16)
    assert rows.doc_begin[0] == 0 and documents_of(rows, opened[1]).max() == 1


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_windows_hold_every_token_of_their_document_in_order(opened, texts, length, share):
    tokenizer, special = opened
    stride = max(1, round(share * (length - 2)))
    streams = streams_of(opened, texts)
    rows = concatenate(list(windows(streams, length, special, stride=stride)))
    kept = ordinary(rows, special)
    assert (documents_of(rows, special)[kept] == np.repeat(rows.doc_begin, kept.sum(1))).all()
    columns = (rows.input_ids, rows.offset_begin, rows.offset_end)
    for ordinal, text in enumerate(texts):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        whole = [(i, *o) for i, o in zip(encoding.ids, encoding.offsets, strict=True)]
        begin = reached = 0
        for row in np.flatnonzero(rows.doc_begin == ordinal):
            size = kept[row].sum()
            tail = rows.input_ids[row, size + 1 :].tolist()
            assert tail == [special.sep] + [special.pad] * (len(tail) - 1)
            parts = (column[row, 1 : size + 1].tolist() for column in columns)
            part = list(zip(*parts, strict=True))
            before, begin = begin, whole.index(part[0])
            assert whole[begin : begin + size] == part
            assert begin <= reached < begin + size
            if share == 0.5 and length >= 16:  # no word of this text is longer than the stride
                assert begin <= before + stride
            reached = begin + size
        assert reached == len(whole)
    if length >= 16:
        assert rows.word_starts[:, 1].mean() > 0.9
