"""Inference throughput: `fitb bench infer`.

Compares the student with its teacher, with onnxruntime and with transformers' fill-mask pipeline,
and `fitb serve` under load with an unbatched server and with that pipeline behind FastAPI.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch

from fitb.bench.bench_config import InferBenchConfig
from fitb.bench.load_generator import serving
from fitb.bench.scorers import compare_scorers
from fitb.bench.text import documents, pool
from fitb.bench.timing import in_turns, machine, ratios, spread
from fitb.corpus.tokenizer import load_tokenizer, train_tokenizer
from fitb.infer.fill import fill
from fitb.infer.pytorch import TorchScorer
from fitb.infer.request import FillRequest, Search
from fitb.model.flops import VOCABULARY
from fitb.model.load import load_model, quiet


def bench(config: InferBenchConfig) -> dict[str, Any]:
    """Measure and return one result; what is compared takes turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = pool()
    row: dict[str, Any] = {
        "bench": "infer",
        **machine(),
        "texts": config.texts,
        "words": config.words,
    }
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name, quiet():
        train_tokenizer(lines, VOCABULARY, Path(name))
        tokenizer = load_tokenizer(Path(name))
        row["vocabulary"] = len(tokenizer)
        texts = blanked(lines, config, tokenizer.mask_token)
        rows = [tokenizer(text)["input_ids"] for text in texts]
        geometries = {"student": config.model, "teacher": config.teacher}
        by_scorer = compare_scorers(
            geometries, tokenizer, rows, config.scorer_batches, config.repeats
        )
        first = by_scorer[f"logits_batch_{config.scorer_batches[0]}"]
        row |= {ratio: first.pop(ratio) for ratio in list(first) if "_over_" in ratio}
        row |= by_scorer
        if config.clients and importlib.util.find_spec("uvicorn"):
            load_model(config.model, tokenizer=tokenizer).model.save_pretrained(name)
            flags = ("--threads", str(config.server_threads))
            served = serving(name, texts, config.clients, config.load_s, config.repeats, flags)
            row |= {"clients": config.clients, **served}
    model = torch.nn.Module.to(load_model(config.model, tokenizer=tokenizer).model, device)
    return row | _beside_the_pipeline(config, model, tokenizer, texts, device)


def _beside_the_pipeline(
    config: InferBenchConfig, model: Any, tokenizer: Any, texts: list[str], device: torch.device
) -> dict[str, Any]:
    """Texts per second from text to answers, by batch size, next to the pipeline."""
    from transformers import pipeline

    scorer = TorchScorer(model, tokenizer)
    requests = [FillRequest(text, Search(top_k=5)) for text in texts]
    other: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, device=device)
    found: dict[str, Any] = {}
    for batch in config.batches:
        runs = {
            "fitb": lambda most, batch=batch: [
                fill(scorer, requests[begin : min(begin + batch, most)])
                for begin in range(0, most, batch)
            ],
            "pipeline": lambda most, batch=batch: other(texts[:most], top_k=5, batch_size=batch),
        }
        times = in_turns(runs, len(texts), config.repeats, device)
        speeds = {name: [len(texts) / s for s in mine] for name, mine in times.items()}
        found[f"batch_{batch}"] = {
            "texts_per_s": spread(speeds["fitb"], 1),
            "pipeline_texts_per_s": spread(speeds["pipeline"], 1),
            "ratio": ratios(speeds["fitb"], speeds["pipeline"]),
        }
    return found


def blanked(lines: list[str], config: InferBenchConfig, mask_token: str) -> list[str]:
    """Return `config.texts` texts of `config.words` words each, the middle one masked."""
    texts = []
    for text in documents(lines, config.texts * 4000, seed=2):
        words = text.split()[: config.words]
        words[len(words) // 2] = mask_token
        texts.append(" ".join(words))
    return texts[: config.texts]
