"""Inspections of real shards: numbers against naive loops, pages that stand alone, no torch."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from html_page import HtmlPage

from fitb.base.errors import ConfigError, ContractError, DataError
from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows
from fitb.shards.shard_set import ShardSet
from fitb.tools.inspect.decoding import TokenDecoder, examples, round_trips
from fitb.tools.inspect.display import as_page, as_text
from fitb.tools.inspect.inspection import InspectConfig, inspect
from fitb.tools.inspect.sample import RowRange, choose_ranges, document_lengths, read_sample
from fitb.tools.inspect.statistics import describe, most_split, word_sizes


@pytest.fixture(scope="module")
def decoder(shards):
    return TokenDecoder(shards / "tokenizer")


@pytest.fixture(scope="module")
def vocabulary(shards):
    return Vocabulary.of_folder(shards / "tokenizer")


@pytest.fixture(scope="module")
def whole(shards, decoder):
    return read_sample(ShardSet.open(shards, "train"), 10**9, decoder.special)


@pytest.fixture(scope="module")
def result(shards):
    return inspect(InspectConfig(str(shards), rows=500, seed=3))


def lengths_slowly(shards, special):
    """Tokens of each document of each file, row by row and token by token."""
    lengths = Counter()
    files = ShardSet.open(shards, "train").manifest["shards"]
    for path in (shards / entry["file"] for entry in files if entry["split"] == "train"):
        for row in pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist():
            document, inside = row["doc_begin"] - 1, False
            for token in row["input_ids"]:
                text = token not in (special.pad, special.cls, special.sep)
                document += text and not inside
                if text:
                    lengths[path.name, document] += 1
                inside = text
    return sorted(lengths.values())


@pytest.mark.parametrize("wanted", [1, 7, 8, 9, 100, 699, 700, 701])
def test_ranges_hold_so_many_rows_none_twice_and_touch_no_two_shards(wanted):
    shard_rows = (200, 1, 99, 250, 150)
    ranges = choose_ranges(shard_rows, wanted)
    rows = [(each.shard, place) for each in ranges for place in range(each.begin, each.end)]
    assert len(rows) == len(set(rows)) == min(wanted, 700)
    assert rows == sorted(rows)
    assert all(0 <= place < shard_rows[shard] for shard, place in rows)
    if wanted >= 700:  # neighbours are one range
        assert ranges == tuple(RowRange(i, 0, size) for i, size in enumerate(shard_rows))


def test_document_lengths_are_those_of_a_loop_over_tokens(shards, whole, decoder):
    split = ShardSet.open(shards, "train")
    slowly = lengths_slowly(shards, decoder.special)
    found = document_lengths(whole, split.shard_rows)
    assert sorted(found.tolist()) == slowly
    assert len(found) == split.manifest["splits"]["train"]["documents"]
    some = document_lengths(read_sample(split, 400, decoder.special), split.shard_rows)
    assert len(some) > 100 and not Counter(some.tolist()) - Counter(slowly)


def test_a_description_counts_every_value_once():
    for values in (np.array([3]), np.array([0, 0]), np.arange(1000), np.array([1, 5, 100_000])):
        for doubling in (False, True):
            told = describe(values, doubling=doubling)
            bins = told["histogram"]
            assert sum(entry["count"] for entry in bins) == told["count"] == len(values)
            for entry in bins:
                inside = (values >= entry["begin"]) & (values < entry["end"])
                assert entry["count"] == inside.sum()
            assert told["percentiles"]["50"] == round(float(np.median(values)), 1)
            assert (told["min"], told["max"]) == (values.min(), values.max())
    assert describe(np.zeros(0, np.int64)) is None


def test_split_words_are_those_that_a_loop_finds():
    ids = np.array([[2, 10, 11, 12, 20, 3], [2, 10, 11, 12, 30, 31], [2, 9, 40, 3, 41, 3]])
    words = np.array([[-1, 0, 0, 0, 1, -1], [-1, 0, 0, 0, 1, 1], [-1, -1, 0, -1, 1, -1]])
    sizes = word_sizes(words)
    assert sizes[:, :2].tolist() == [[3, 1], [3, 2], [1, 1]]
    assert sizes[:, 2:].sum() == 0
    assert most_split(ids, words, sizes) == [((10, 11, 12), 2), ((30, 31), 1)]
    assert most_split(ids, words, np.minimum(sizes, 1)) == []


def test_statistics_count_words_and_pieces(shards, whole, decoder):
    numbers = inspect(InspectConfig(str(shards), rows=10**9, examples=0))["statistics"]
    split = ShardSet.open(shards, "train").manifest["splits"]["train"]
    assert (numbers["sample_rows"], numbers["sample_tokens"]) == (split["rows"], split["tokens"])
    words = int(whole.word_starts.sum())
    unknown = int((whole.input_ids == decoder.special.unk).sum())
    assert numbers["words_per_row"]["mean"] == pytest.approx(words / len(whole.rows), abs=0.01)
    assert numbers["unknown_share"] == pytest.approx(unknown / numbers["sample_tokens"], abs=1e-6)
    assert 1 < numbers["pieces_per_word"] < 4
    pieces = [len(entry["pieces"]) for entry in numbers["most_split"]]
    assert pieces == sorted(pieces, reverse=True)
    for entry in numbers["most_split"]:
        assert entry["word"] == "".join(piece.removeprefix("##") for piece in entry["pieces"])


def test_words_longer_than_their_rows_masks_are_counted_and_named(shards):
    found = {}
    for fraction in (0.15, 0.03):
        config = InspectConfig(str(shards), rows=10**9, mask=MaskConfig(fraction=fraction))
        found[fraction] = inspect(config)["statistics"]["never_masked"]
    length = ShardSet.open(shards, "train").length
    most = max(1, round(0.03 * (length - 2)))
    assert found[0.03]["count"] > found[0.15]["count"]
    assert all(len(entry["pieces"]) > most for entry in found[0.03]["words"])
    token = InspectConfig(str(shards), mask=MaskConfig("token", fraction=0.03))
    assert inspect(token)["statistics"]["never_masked"] == {"count": 0, "words": []}


def test_text_is_joined_from_pieces_and_not_mended(decoder):
    ids = decoder.encode(["they do not know ."])[0]
    assert decoder.text(ids) == "they do not know ."
    assert decoder.pieces([decoder.special.mask, 10**6]) == ["[MASK]", "<1000000>"]


def test_ids_that_no_text_gives_are_found_and_shown(whole, decoder):
    """A word in single letters is read again in longer pieces."""
    letters = [decoder.tokenizer.token_to_id(piece) for piece in ("t", "##h", "##e")]
    ids, starts = whole.input_ids.copy(), whole.word_starts.copy()
    ids[5, 1:4], starts[5, 1:4] = letters, [True, False, False]
    segments = whole.segments.copy()
    segments[5, 1:4] = segments[5, 1]
    changed = replace(whole, input_ids=ids, word_starts=starts, segments=segments)
    (first, *_) = round_trips(changed, decoder)["first"]
    assert (first["row"], first["before"][:3], first["after"][0]) == (5, ["t", "##h", "##e"], "the")


def test_unknown_words_and_tails_of_cut_words_are_no_failures(whole, decoder):
    told = round_trips(whole, decoder)
    assert told["segments"] > len(whole.rows)
    assert (told["failures"], told["first"]) == (0, [])
    ids, starts, segments = (
        column.copy() for column in (whole.input_ids, whole.word_starts, whole.segments)
    )
    cut = np.flatnonzero(starts[:, 1] & ~starts[:, 2] & (ids[:, 2] != decoder.special.sep))
    assert len(cut) > 10
    for column in (ids, starts, segments):
        column[cut, 1:-1] = column[cut, 2:].copy()  # its first piece is gone
    alone = starts[:, 10] & starts[:, 11]
    assert alone.sum() > 10
    ids[alone, 10] = decoder.special.unk
    few = replace(whole, input_ids=ids, word_starts=starts, segments=segments)
    assert round_trips(few, decoder)["failures"] == 0


def test_examples_are_masked_as_in_epoch_0_of_a_run(whole, decoder, vocabulary):
    mask = MaskConfig(strategy="span", fraction=0.3)
    shown = examples(whole, 4, decoder=decoder, vocabulary=vocabulary, mask=mask, seed=9)
    assert len({example["row"] for example in shown}) == 4
    for example in shown:
        row = np.array([example["row"]])
        place = int(np.flatnonzero(whole.rows == row)[0])
        masked = mask_rows(
            whole.input_ids[place : place + 1], whole.word_starts[place : place + 1], row,
            np.array([0]), seed=9, vocabulary=vocabulary, config=mask,
        )  # fmt: skip
        used = masked.labels[0] != IGNORE_INDEX
        size = len(example["ids"])
        assert example["ids"] == masked.input_ids[0, :size].tolist()
        assert not masked.attention_mask[0, size:].any()
        labels = map(decoder.tokenizer.id_to_token, masked.labels[0][used].tolist())
        expected = [*zip(masked.slots[0][used].tolist(), labels, strict=True)]
        assert [(label["place"], label["label"]) for label in example["labels"]] == expected
        assert all(example["pieces"][x["place"]] == x["shown"] for x in example["labels"])
        assert example["masked"].startswith("[CLS] ")


def test_more_examples_than_rows_are_all_rows(shards):
    result = inspect(InspectConfig(str(shards), "validation", rows=5, examples=50))
    assert len(result["examples"]) == result["statistics"]["sample_rows"] == 5
    assert (result["facts"]["split"], result["round_trips"]["failures"]) == ("validation", 0)


def test_an_inspection_is_plain_json_and_repeats_itself(shards, result):
    assert json.loads(json.dumps(result)) == result
    assert inspect(InspectConfig(str(shards), rows=500, seed=3)) == result
    facts, manifest = result["facts"], ShardSet.open(shards, "train").manifest
    assert facts["fingerprint"] == manifest["fingerprint"] and facts["tokenizer_matches"]
    assert facts["tokenizer_fingerprint"] == manifest["tokenizer"]["fingerprint"]
    assert (result["masks"]["strategy"], result["masks"]["rows"]) == ("whole_word", 500)


def test_terminal_and_page_show_facts_histograms_and_examples(result):
    text, page = as_text(result), HtmlPage(as_page(result))
    for expected in ("fingerprint", "tokens per document", "p50", "####", "[MASK] <- ", "seed 3"):
        assert expected in text
    for expected in (result["facts"]["fingerprint"], "Tokens per document", "p50", "seed 3"):
        assert expected in page.text()
    for example in result["examples"]:
        assert " ".join(example["pieces"]) in page.text()


def test_markup_in_a_corpus_stays_text(result):
    harm = "<script>alert(1)</script>&amp;"
    entry = {"word": harm, "pieces": [harm], "count": 1}
    told = {**result, "statistics": {**result["statistics"], "most_split": [entry]}}
    told["examples"] = [{**result["examples"][0], "pieces": [harm, harm], "labels": []}]
    assert HtmlPage(as_page(told)).text().count(harm) >= 3


@pytest.mark.parametrize("name", ["rows", "examples"])
def test_a_number_below_its_range_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=-1"):
        InspectConfig(**{name: -1})


def test_no_shards_and_a_model_that_does_not_fit_are_refused(shards, make_folder, tmp_path):
    with pytest.raises(DataError, match="not a shard set"):
        inspect(InspectConfig(str(tmp_path)))
    with pytest.raises(ContractError, match="vocabulary"):
        inspect(InspectConfig(str(shards), rows=8, model=make_folder()))


def test_the_command_works_without_torch_and_logs_no_text(shards, tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None);"
        "from fitb.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    page = tmp_path / "pages" / "page.html"
    words = ["inspect", str(shards), "--json", "--rows", "64", "--html", str(page)]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["statistics"]["sample_rows"] == 64
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_model_runs_on_a_batch_and_its_loss_stands_beside_that_of_uniform_guesses(
    shards, teacher, vocabulary
):
    import torch
    from transformers import BertForMaskedLM

    result = inspect(InspectConfig(str(shards), rows=64, model=str(teacher), examples=8, seed=2))
    told = result["model"]
    size = result["facts"]["vocab_size"]
    assert told["logits_shape"] == [8, 64, size]
    assert told["log_vocab"] == pytest.approx(math.log(size))
    assert f"8 x 64 x {size}, float32" in as_text(result)
    model = BertForMaskedLM.from_pretrained(teacher).eval()
    read = ShardSet.open(shards, "train").read(np.arange(8))
    masked = mask_rows(
        read.input_ids, read.word_starts, np.arange(8), np.zeros(8, np.int64),
        seed=2, vocabulary=vocabulary, config=MaskConfig(),
    )  # fmt: skip
    labels = np.full_like(masked.input_ids, IGNORE_INDEX)
    np.put_along_axis(labels, masked.slots, masked.labels, axis=1)
    with torch.no_grad():
        found = model(*map(torch.tensor, (masked.input_ids, masked.attention_mask)),
                      labels=torch.tensor(labels))  # fmt: skip
    assert told["loss"] == pytest.approx(float(found.loss), rel=1e-5)
