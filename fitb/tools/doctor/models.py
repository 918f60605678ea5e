"""Model checks: the contract of teacher, student, tokenizer and shards, and a forward pass.

`python -m fitb.tools.doctor.models [flags of fitb train]` is what `fitb doctor` starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from fitb.config import Config
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.configuration import RUN_DIR
from fitb.tools.doctor.deadlines import reason
from fitb.tools.doctor.interpreter import pip
from fitb.tools.doctor.worker import emit

_TEXT = "the ___ of the"  # never a user's text


def look(flags: Sequence[str]) -> Iterator[Check]:
    """Check the contract, one forward pass per model, and one blank if a model has an MLM head.

    Raises: what fitb.training.setup.load_models raises.
    """
    try:
        import torch
        import transformers
    except Exception as error:  # a broken library may raise anything
        found = f"torch and transformers cannot be imported: {reason(error)}"
        fix = pip("--force-reinstall", "torch>=2.10", "transformers>=5.17,<6")
        yield Check("bad", "models", found, fix)
        return
    from fitb.config.parser import parse
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.infer.fill import fill
    from fitb.infer.pytorch import TorchScorer
    from fitb.infer.request import FillRequest
    from fitb.shards.cache import CacheSettings
    from fitb.shards.shard_set import ShardSet
    from fitb.training.setup import load_models

    yield Check(
        "ok", "imports", f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    config = parse(Config, "fitb train", ["--run_dir", RUN_DIR, *flags])
    data = config.data
    cache = CacheSettings(data.cache_dir, data.cache_gb, data.fetch_deadline_s)
    shards = ShardSet.open(data.shards, "train", cache)
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    student, teacher = load_models(config, shards, tokenizer)
    yield Check("ok", "contract", "teacher, student, tokenizer and shards fit together")
    import numpy as np

    row = shards.read(np.zeros(1, np.int64)).input_ids[0]
    row = row[row != tokenizer.pad_token_id].tolist()
    for role, loaded in (("teacher", teacher), ("student", student)):
        if loaded is None:
            continue
        scorer = TorchScorer(loaded.model, tokenizer)
        name, what = f"{role} forward", f"logits of a row of {len(row)} tokens"
        if not torch.isfinite(scorer.logits([row], [[1]])).all():
            fix = f"choose another checkpoint than {loaded.source}"
            yield Check("bad", name, f"{what} are not all finite", fix)
            continue
        yield Check("ok", name, f"{what} are finite")
        if isinstance(getattr(config.model, role), str) and not loaded.missing:
            (filled,) = fill(scorer, [FillRequest(_TEXT)])
            best = filled.fillings[0].probability
            yield Check("ok", f"{role} fills", f"a blank; its likeliest word has {best:.1%}")


if __name__ == "__main__":
    emit(look(sys.argv[1:]), "models")
