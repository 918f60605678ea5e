import torch

from fitb.bench.blanks import BenchConfig, _search, bench, choose_words, render
from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.pytorch import TorchScorer
from fitb.model.load import load_model
from fitb.shards.shard_set import ShardSet
from tests.unit.conftest import tiny_config


def make_model(shard_set, folder):
    from transformers import BertForMaskedLM

    tokenizer = load_tokenizer(shard_set / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertForMaskedLM(tiny_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TorchScorer(load_model(str(folder), tokenizer=tokenizer).model, tokenizer)


def test_words_of_a_length_are_whole_and_chosen_by_the_seed(shard_set, tmp_path):
    scorer = make_model(shard_set, tmp_path / "model")
    shards = ShardSet.open(str(shard_set), "validation")
    for length in (1, 2, 3):
        words = choose_words(shards, scorer, length, 20, seed=1)
        assert words == choose_words(shards, scorer, length, 20, seed=1)
        assert words != choose_words(shards, scorer, length, 20, seed=2)
        for word in words:
            pieces = scorer.tokenizer.convert_ids_to_tokens(list(word.tokens))
            after = scorer.tokenizer.convert_ids_to_tokens(word.row[word.end])
            assert len(pieces) == length
            assert any(char.isalnum() for char in "".join(pieces))  # "(" is no word
            assert [piece.startswith("##") for piece in pieces] == [False] + [True] * (length - 1)
            assert not after.startswith("##")


def test_shares_are_those_of_naive_loops(shard_set, tmp_path):
    scorer = make_model(shard_set, tmp_path / "model")
    config = BenchConfig(
        model=str(tmp_path / "model"), shards=str(shard_set), lengths=[1, 2], words=30, beam=3
    )
    result = bench(config)
    shards = ShardSet.open(config.shards, "validation")
    for length in (1, 2):
        words = choose_words(shards, scorer, length, 30, seed=0)
        greedy = marginals = 0
        for word in words:
            ids = torch.tensor([word.row])
            ids[0, word.begin : word.end] = scorer.tokenizer.mask_token_id
            still_open = list(range(word.begin, word.end))
            with torch.no_grad():
                at_once = scorer._model(input_ids=ids).logits[0].argmax(-1)
                marginals += tuple(at_once[word.begin : word.end].tolist()) == word.tokens
                while still_open:  # the slot of which the model is surest comes first
                    sure, token = scorer._model(input_ids=ids).logits[0].softmax(-1).max(-1)
                    slot = max(still_open, key=lambda slot: float(sure[slot]))
                    ids[0, slot] = token[slot]
                    still_open.remove(slot)
            greedy += tuple(ids[0, word.begin : word.end].tolist()) == word.tokens
        row = result["pieces"][str(length)]
        assert row["words"] == len(words) > 10
        assert row["exact"]["greedy"] * len(words) == greedy
        assert row["exact"]["marginals"] * len(words) == marginals
        lead = row["beam_alone_right"]["greedy"] - row["beam_alone_wrong"]["greedy"]
        assert round((row["exact"]["beam"] - row["exact"]["greedy"]) * len(words)) == lead
    assert result["pieces"]["1"]["exact"]["beam"] == result["pieces"]["1"]["exact"]["marginals"]
    assert len(render(result).splitlines()) == 3


def test_a_word_that_the_model_knows_by_heart_is_found(shard_set, tmp_path):
    scorer = make_model(shard_set, tmp_path / "model")
    shards = ShardSet.open(str(shard_set), "validation")
    (word,) = choose_words(shards, scorer, 2, 1, seed=0)
    scorer.logits = knows(scorer, word)
    assert _search(scorer, [word], 1).tolist() == [True]
    assert _search(scorer, [word, word], 4, "left_to_right").tolist() == [True, True]


def knows(scorer, word):
    """Logits that are highest for the word's own piece in each of its places."""

    def logits(rows, positions):
        found = []
        for places in positions:
            for place in places:
                row = torch.zeros(len(scorer.tokenizer))
                row[word.row[place]] = 50.0
                found.append(row)
        return torch.stack(found)

    return logits
