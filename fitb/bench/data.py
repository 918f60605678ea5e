"""Throughput of preparation and of reading masked rows: `fitb bench data`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fitb.base import rng
from fitb.base.world import World
from fitb.bench.bench_config import DataBenchConfig
from fitb.bench.text import documents, pool
from fitb.bench.timing import machine, peak_mb, ratios, seconds, spread
from fitb.config import MaskConfig
from fitb.corpus import minhash
from fitb.corpus.clean import CleanConfig
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.tokenizer import train_tokenizer
from fitb.data.masking import Vocabulary
from fitb.data.order import rows_at
from fitb.data.stream import RowStream
from fitb.model.flops import VOCABULARY
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import open_tokenizer

SIMULATED_ROWS = 10**9
SIMULATED_SHARD_ROWS = 65_536
SIZES = (1, 4, 16)

_ROWS_PER_BATCH = 1024

logger = logging.getLogger(__name__)


def bench(config: DataBenchConfig) -> dict[str, Any]:
    """Measure and return one flat result.

    The corpus is synthetic: lines of English docstrings on this machine, resampled into documents
    of about 1,500 characters, so that no document repeats at any size.
    """
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        folder = Path(name)
        lines = pool()
        tokenizer = folder / "tokenizer"
        train_tokenizer(lines, VOCABULARY, tokenizer)
        texts = list(documents(lines, int(config.mb * 1e6), seed=0))
        plain = folder / "texts.txt"
        plain.write_text("\n".join(texts) + "\n", encoding="utf-8")
        result: dict[str, Any] = {"bench": "data", **machine(), "text_mb": config.mb}
        result |= _ratios(config, folder, texts, plain, tokenizer)
        result["signature_mb_per_s_core"] = _signatures(texts, config.repeats)
        for strategy in ("whole_word", "token", "span"):
            speed = _rows_per_s(folder / "shards-0", strategy, config.repeats)
            result["rows_per_s" + f"_{strategy}" * (strategy != "whole_word")] = speed
        result["seek_ms"] = _seek(config.repeats)
        result["prepare_peak_mb"] = _memory(config, folder, lines, tokenizer)
    return result


def _ratios(
    config: DataBenchConfig, folder: Path, texts: list[str], plain: Path, tokenizer: Path
) -> dict[str, Any]:
    """Time the tokenizer alone and whole preparations in turn, on the same text and cores."""
    bare: list[float] = []
    default: list[float] = []
    mended: list[float] = []
    _encode(texts, tokenizer)
    prepare(_prepare_config(folder / "warm", plain, tokenizer, CleanConfig()))
    for number in range(config.repeats):
        bare.append(seconds(lambda: _encode(texts, tokenizer)))
        for clean, times in ((CleanConfig(), default), (CleanConfig(ftfy=True), mended)):
            out = folder / f"shards-{number + config.repeats * clean.ftfy}"
            asked = _prepare_config(out, plain, tokenizer, clean)
            times.append(seconds(partial(prepare, asked)))
        logger.info(
            "run=%d bare_s=%.1f prepare_s=%.1f with_ftfy_s=%.1f",
            *(number, bare[-1], default[-1], mended[-1]),
        )
    size_mb = plain.stat().st_size / 1e6
    return {
        "tokenizer_mb_per_s": spread([size_mb / s for s in bare], 2),
        "prepare_mb_per_s": spread([size_mb / s for s in default], 2),
        "prepare_over_tokenizer": ratios(default, bare),
        "prepare_ftfy_over_tokenizer": ratios(mended, bare),
    }


def _prepare_config(out: Path, plain: Path, tokenizer: Path, clean: CleanConfig) -> PrepareConfig:
    return PrepareConfig(
        out=str(out),
        source="text",
        files=[str(plain)],
        document="line",
        tokenizer=str(tokenizer),
        clean=clean,
        shard_mb=4.0,
    )


def _encode(texts: list[str], folder: Path) -> None:
    """Tokenise on all cores, without the rest of the preparation."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer, _ = open_tokenizer(folder)
    for begin in range(0, len(texts), 1000):
        tokenizer.encode_batch(texts[begin : begin + 1000], add_special_tokens=False)


def _signatures(texts: list[str], repeats: int) -> dict[str, float]:
    """MB/s of MinHash signatures on one core."""
    few = texts[:4000]
    size_mb = sum(len(text.encode()) for text in few) / 1e6
    times = [seconds(lambda: minhash.signatures(few)) for _ in range(repeats)]
    return spread([size_mb / s for s in times], 2)


def _rows_per_s(folder: Path, strategy: Any, repeats: int) -> dict[str, float]:
    """Rows per second of masked, collated batches in one process, shards in the page cache."""
    shards = ShardSet.open(folder, "train")
    stream = RowStream(
        shards,
        vocabulary=Vocabulary.of_folder(shards.tokenizer_folder),
        mask=MaskConfig(strategy=strategy),
        world=World(0, 1, 0),
        global_batch=_ROWS_PER_BATCH,
        window_shards=16,
        prefetch_steps=0,
        seed=0,
    )
    steps = 30
    stream.batch(0)
    times = [seconds(lambda: [stream.batch(step) for step in range(steps)]) for _ in range(repeats)]
    return spread([steps * _ROWS_PER_BATCH / s for s in times], 0)


def _seek(repeats: int) -> dict[str, float]:
    """Milliseconds to compute the row numbers of a batch at a random step of 1e9 rows, cold."""
    full, rest = divmod(SIMULATED_ROWS, SIMULATED_SHARD_ROWS)
    shard_rows = np.array([SIMULATED_SHARD_ROWS] * full + [rest], dtype=np.int64)
    times = []
    for number in range(max(20, repeats)):
        place = int(rng.keyed(1, number) % np.uint64(100 * SIMULATED_ROWS))
        positions = np.arange(place, place + 256)
        look = partial(rows_at, positions, shard_rows=shard_rows, seed=0, window_shards=16)
        times.append(1e3 * seconds(look))
    return spread(times)


def _memory(
    config: DataBenchConfig, folder: Path, lines: list[str], tokenizer: Path
) -> dict[str, float]:
    """Peak memory in MB of `fitb prepare` and its workers, keyed by megabytes of text."""
    peaks = {}
    for factor in SIZES:
        size_mb = config.memory_mb * factor
        path = folder / f"memory-{factor}.txt"
        with open(path, "w", encoding="utf-8") as file:
            for text in documents(lines, int(size_mb * 1e6), seed=factor):
                file.write(text + "\n")
        command = [sys.executable, "-m", "fitb", "prepare", "--out", f"{path}.shards"]
        command += ["--source", "text", "--files", f'["{path}"]', "--document", "line"]
        command += ["--tokenizer", str(tokenizer), "--shard_mb", "4"]
        peaks[f"{size_mb:g}"] = peak_mb(command)
        path.unlink()
    return peaks
