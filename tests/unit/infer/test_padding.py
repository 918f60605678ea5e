"""How rows of many lengths are cut into forward passes."""

import random

from fitb.infer.fill import fill
from fitb.infer.pytorch import TorchScorer
from fitb.infer.request import FillRequest, Search
from fitb.model.load import load_model


class Watched:
    """A scorer that remembers the lengths of the rows of each pass."""

    def __init__(self, scorer):
        self.tokenizer, self.max_length, self._scorer = scorer.tokenizer, 64, scorer
        self.lengths = []

    def logits(self, rows, positions):
        self.lengths.append([len(row) for row in rows])
        return self._scorer.logits(rows, positions)


def test_a_pass_of_many_rows_is_hardly_padded(make_folder, tokenizer):
    draw = random.Random(1)
    scorer = TorchScorer(load_model(make_folder(), tokenizer=tokenizer).model, tokenizer)
    texts = ["the " * draw.randint(1, 60) + "[MASK]" for _ in range(300)]
    requests = [FillRequest(text, Search(beam=1, top_k=1)) for text in texts]
    watched = Watched(scorer)
    together = fill(watched, requests)
    assert sum(map(len, watched.lengths)) == len(texts)
    for lengths in watched.lengths:
        *before, longest = sorted(lengths)
        if longest * len(lengths) > 1024:
            assert longest <= 1.1 * min(before)
    few = draw.sample(range(300), 12)
    for number in few:
        (alone,) = fill(scorer, [requests[number]])
        assert alone.fillings[0].sentence == together[number].fillings[0].sentence
