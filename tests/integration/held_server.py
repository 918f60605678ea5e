"""`fitb serve` with a model that stands still while the file in FITB_TEST_HOLD exists."""

import os
import sys
import time
from pathlib import Path

from fitb import cli
from fitb.serve import server


class Held:
    """A scorer that waits before each forward pass, and writes down that it does."""

    def __init__(self, *settings):
        self._scorer = load_scorer(*settings)
        self._hold = Path(os.environ["FITB_TEST_HOLD"])
        self.tokenizer, self.max_length = self._scorer.tokenizer, self._scorer.max_length

    def logits(self, rows, positions):
        with open(f"{self._hold}.passes", "a") as passes:
            passes.write(f"{len(rows)}\n")
        while self._hold.exists():
            time.sleep(0.005)
        return self._scorer.logits(rows, positions)


load_scorer = server.load_scorer
if __name__ == "__main__":
    server.load_scorer = Held
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
