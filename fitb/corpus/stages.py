"""The stages of a preparation and their targets.

    read -> (sign -> buckets -> cluster) -> tokenizer -> write -> finish

The stages in brackets run only with near_duplicates. Each stage makes targets: one per input split,
shard or bucket, or a single one. Targets are written atomically, existing ones are skipped, and
their bytes do not depend on the number of tasks, each of which takes every n-th target.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.base import log
from fitb.base.errors import FINISHED
from fitb.base.fsio import (
    folder_written_whole,
    fsync_dir,
    fsync_tree,
    sha256_file,
    write_json,
    written_whole,
)
from fitb.corpus import minhash
from fitb.corpus.chunk import concatenate, pack, token_streams, windows
from fitb.corpus.clean import Cleaner
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.set_manifest import NUM_SAMPLES, write_dropped, write_manifest
from fitb.corpus.sorted_runs import Documents, text_digest, write_run
from fitb.corpus.sources import Document, InputSplit, TextSource, read_split
from fitb.corpus.tokenizer import add_tokens, describe_tokenizer, read_tokens, train_tokenizer
from fitb.corpus.work import FOLDERS, GIVEN, SETTINGS, TOKENIZER, Shard, Work
from fitb.shards.tokenizer import SpecialIds, open_tokenizer
from fitb.shards.write import DIGEST_BYTES, Columns, write_documents, write_shard

SAMPLE_CHARS = 160

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """One output of a stage, written atomically.

    Args:
        place: file or folder that exists once the target is made; None to make it at every start.
        make: function that makes the target.
    """

    place: Path | None
    make: Callable[[], None]

    @property
    def is_made(self) -> bool:
        return self.place is not None and self.place.exists()


def stages_of(config: PrepareConfig) -> tuple[str, ...]:
    """Return the names of the stages of a preparation, in order."""
    between = () if config.near_duplicates is None else ("sign", "buckets", "cluster")
    return ("read", *between, "tokenizer", "write", "finish")


def targets_of(work: Work, stage: str) -> list[Target]:
    """Return the targets of a stage.

    Raises: DataError if a stage needs an input split that is not read, or a split has no document.
    """
    splits, similar = work.plan.splits, work.folder / "minhash"
    if stage == "read":
        return [
            Target(work.run(each).with_suffix(".json"), partial(_read_split, work, each))
            for each in splits
        ]
    if stage == "finish":
        return [Target(None, partial(_finish, work))]
    if work.is_made():
        return []
    if stage == "sign":
        return [Target(work.signed(s), partial(_sign, work, s)) for s in work.shards]
    if stage == "buckets":
        jaccard = float(work.config.near_duplicates or 0)
        return [
            Target(minhash.pairs_of(similar, n), partial(minhash.find_pairs, similar, n, jaccard))
            for n in range(minhash.bands(jaccard)[0])
        ]
    if stage == "cluster":
        return [Target(similar / "removed", partial(_cluster, work))]
    if stage == "tokenizer":
        return [Target(work.tokenizer, partial(_train_tokenizer, work))]
    return [Target(work.piece(s), partial(_write_piece, work, s)) for s in work.shards]


def missing(work: Work, stage: str, rank: int = 0, tasks: int = 1) -> list[Target]:
    """Return the unmade targets of one task of a stage, which has every tasks-th target."""
    return [target for target in targets_of(work, stage)[rank::tasks] if not target.is_made]


@dataclass(frozen=True)
class Task:
    """One task of a stage, pickled to run in another process or Slurm job.

    Args:
        folder: path of the working folder.
        stage: name of the stage.
        rank: number of the task, from 0.
        tasks: number of tasks of the stage.
    """

    folder: str
    stage: str
    rank: int
    tasks: int

    def __call__(self) -> int:
        log.setup()
        for target in missing(Work.open(Path(self.folder)), self.stage, self.rank, self.tasks):
            target.make()
        return FINISHED


def _read_split(work: Work, input_split: InputSplit) -> None:
    """Clean and sort the documents of an input split; write its counts last."""
    cleaner = Cleaner(work.config.clean)
    dropped: list[tuple[int, int, str]] = []

    def documents() -> Iterator[tuple[int, int, str]]:
        for found in read_split(TextSource.of(vars(work.config)), work.plan, input_split):
            if not isinstance(found, Document):
                dropped.append((found.file, found.place, found.rule))
                continue
            cleaned = cleaner.clean(found.text)
            if cleaned.dropped is None:
                yield found.file, found.place, cleaned.text
            else:
                dropped.append((found.file, found.place, cleaned.dropped))

    run = work.run(input_split)
    totals = write_run(
        run,
        documents(),
        seed=work.config.seed,
        validation_fraction=work.config.validation_fraction,
        block_bytes=int(work.config.shard_mb * 1e6),
    )
    totals.dropped = Counter(rule for _, _, rule in dropped)
    totals.changed = cleaner.changed
    write_dropped(run.with_suffix(".arrow"), dropped)
    write_json(run.with_suffix(".json"), {**vars(totals), "digest_sum": totals.fingerprint})
    logger.info(
        "unit=%d documents=%d dropped=%d text_mb=%.1f",
        *(input_split.number, totals.documents.total(), len(dropped), totals.bytes.total() / 1e6),
    )


def _sign(work: Work, shard: Shard) -> None:
    """Write the MinHash signatures of a shard."""
    assert work.config.near_duplicates is not None
    texts = work.gather(shard).texts.to_pylist()
    similar, sigs = work.folder / "minhash", minhash.signatures(texts)
    minhash.write_signatures(similar, shard.index, sigs, work.config.near_duplicates)
    work.signed(shard).touch()
    logger.info("signed=%s documents=%d", shard.name, len(texts))


def _cluster(work: Work) -> None:
    """Choose the near-duplicates to drop."""
    assert work.config.near_duplicates is not None
    found = minhash.cluster(work.folder / "minhash", work.config.near_duplicates)
    logger.info("near_duplicates=%d clusters=%d", *found)


def _train_tokenizer(work: Work) -> None:
    """Train the tokenizer on the distinct texts of the train split, and add tokens to it."""
    texts = (
        text
        for shard in work.shards
        if shard.split == "train"
        for text in _texts(work.documents(shard)[0])
    )
    config = work.config
    with folder_written_whole(work.tokenizer) as scratch:
        train_tokenizer(
            texts,
            config.vocab_size,
            scratch,
            lowercase=config.lowercase,
            strip_accents=config.strip_accents,
        )
        if config.add_tokens:
            add_tokens(scratch, read_tokens(Path(config.add_tokens)))
    logger.info("vocab_size=%d", describe_tokenizer(work.tokenizer)["vocab_size"])


def _write_piece(work: Work, shard: Shard) -> None:
    """Tokenise the documents of a shard, cut them into rows, and write them; its counts last."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tasks run in parallel already
    documents, near_duplicates = work.documents(shard)
    encoder, special = open_tokenizer(work.tokenizer)
    texts = documents.texts.to_pylist()
    kept: list[NDArray[np.bool_]] = []

    def streams() -> Iterator[Any]:
        for stream, batch_kept in token_streams(texts, encoder, special):
            kept.append(batch_kept)
            if stream is not None:
                yield stream

    config = work.config
    if config.rows == "packed":
        parts = list(pack(streams(), config.length, special))
    else:
        stride = config.stride or config.length - 2
        parts = list(windows(streams(), config.length, special, stride=stride))
    unknown = np.flatnonzero(~np.concatenate([np.empty(0, bool), *kept]))
    dropped = [
        *((*pair, "duplicate") for pair in documents.duplicates.tolist()),
        *((*pair, "near_duplicate") for pair in _places(near_duplicates)),
        *((*pair, "unknown") for pair in _places(documents.only(unknown))),
    ]
    write_dropped(work.folder / "pieces" / f"{shard.name}.arrow", dropped)
    documents = documents.without(unknown)
    piece: dict[str, Any] = {
        "dropped": Counter(rule for *_, rule in dropped),
        "entry": None,
        "sample": [
            text if len(text) <= SAMPLE_CHARS else text[: SAMPLE_CHARS - 3] + "..."
            for text in islice(_texts(documents), NUM_SAMPLES)
        ],
    }
    if parts:
        rows = concatenate(parts)
        piece["entry"] = _write_shard(work, shard, rows, documents, encoder.get_vocab_size())
        piece["counts"] = _counts(rows, special)
    write_json(work.piece(shard), piece)
    logger.info("shard=%s documents=%d rows=%d", shard.name, len(documents), sum(map(len, parts)))


def _write_shard(
    work: Work, shard: Shard, rows: Columns, documents: Documents, vocab_size: int
) -> dict[str, Any]:
    """Write the two files of a shard; return its manifest entry."""
    path = work.set / f"{shard.name}.arrow"
    table = work.set / f"{shard.name}.documents.arrow"
    texts = list(_texts(documents))
    digests = b"".join(text_digest(text)[:DIGEST_BYTES] for text in texts)
    with written_whole(path) as part:
        num_bytes = write_shard(
            part, rows, vocab_size=vocab_size, with_offsets=shard.split == "validation"
        )
        sha256 = sha256_file(part)
    with written_whole(table) as part:
        table_bytes = write_documents(
            part,
            file=documents.file,
            place=documents.place,
            chars=np.array([len(text) for text in texts], dtype=np.int32),
            digest=np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES),
        )
        table_sha256 = sha256_file(part)
    return {
        "file": path.name,
        "split": shard.split,
        "rows": len(rows),
        "bytes": num_bytes,
        "sha256": sha256,
        "documents": len(documents),
        "documents_file": table.name,
        "documents_bytes": table_bytes,
        "documents_sha256": table_sha256,
    }


def _counts(rows: Columns, special: SpecialIds) -> dict[str, int]:
    """Count the rows and tokens of a shard; `tokens` are ordinary tokens, [UNK] included."""
    is_special = np.isin(rows.input_ids, (special.pad, special.cls, special.sep))
    return {
        "rows": len(rows),
        "tokens": int((~is_special).sum()),
        "unknown_tokens": int((rows.input_ids == special.unk).sum()),
        "padding_tokens": int((rows.input_ids == special.pad).sum()),
    }


def _texts(documents: Documents) -> Iterator[str]:
    return (text.as_py() for text in documents.texts)


def _places(documents: Documents) -> list[tuple[int, int]]:
    return list(zip(documents.file.tolist(), documents.place.tolist(), strict=True))


def _finish(work: Work) -> None:
    """Write the manifest, move the set to the output folder, and clear the working folder."""
    if work.is_made():
        logger.info("out=%s already holds this shard set; nothing to do", work.out)
    else:
        write_manifest(work)
        if work.out.exists():
            work.out.rmdir()  # an empty folder: see check_place
        for leftover in work.set.glob(".*.part"):  # written by a killed task
            leftover.unlink()
        fsync_tree(work.set)
        work.set.rename(work.out)
        fsync_dir(work.out.parent)
    (work.folder / SETTINGS).unlink()  # first: without it the rest is ignored
    for name in (GIVEN, TOKENIZER, *FOLDERS):
        if name != "stages":  # which holds the files of this job
            shutil.rmtree(work.folder / name, ignore_errors=True)
