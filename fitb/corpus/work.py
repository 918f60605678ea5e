"""The working folder of a preparation: what its files are called, its lock, and what they hold.

It lies hidden beside the output folder and is kept when a preparation is interrupted. Every file in
it appears by a rename, so one that exists is complete. The folder may also hold files of a user:
only files with the names below, in a folder that has fitb's marker, are ever removed.

    made-by-fitb-prepare           the marker
    settings.json plan.json        what is made, from which input splits
    given/ tokenizer/              a copy of --tokenizer; the tokenizer in use
    runs/00017.run .arrow .json    an input split: sorted documents, dropped documents, counts
    minhash/ signed/               near-duplicates
    pieces/train-00003.json        counts of a finished shard, whose file is in set/
    set/                           becomes the shard set
    jobs.json                      Slurm job id of each stage
    stages/                        logs and submitit's files of each stage
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from fitb.base.errors import DataError, SystemFault
from fitb.base.fsio import read_json
from fitb.corpus import minhash
from fitb.corpus.clean import CleanConfig
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.sorted_runs import SPLITS, Documents, Totals, gather
from fitb.corpus.sources import InputSplit, ReadPlan
from fitb.shards.manifest import MANIFEST, check_files, read_manifest
from fitb.shards.write import shard_name

JOBS, PLAN, SETTINGS = "jobs.json", "plan.json", "settings.json"
GIVEN, TOKENIZER = "given", "tokenizer"
LAYOUT = 2  # of these folders; in 1 signatures had the numbers of their documents beside them
FOLDERS = ("runs", "minhash", "signed", "pieces", "set", "stages")
_MARKER = "made-by-fitb-prepare"
_OWN = (_MARKER, JOBS, PLAN, SETTINGS, GIVEN, TOKENIZER, *FOLDERS)


@dataclass(frozen=True)
class Shard:
    """A shard, written or not: one of equal ranges of the sort keys of a split.

    Args:
        index: number over both splits, train first.
        split: train or validation.
        number: number in its split.
        of: number of shards in its split.
    """

    index: int
    split: str
    number: int
    of: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number).removesuffix(".arrow")


@dataclass(frozen=True)
class Work:
    """The working folder of one preparation; any process can open it.

    Args:
        folder: absolute path of the working folder.
        out: absolute path of the output folder.
        config: the configuration of the preparation.
        settings: the settings recorded in the manifest.
        plan: input splits of the source text.
    """

    folder: Path
    out: Path
    config: PrepareConfig
    settings: dict[str, Any]
    plan: ReadPlan = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Work:
        """Open the working folder of a preparation that has begun."""
        saved = read_json(folder / SETTINGS)
        config = saved["config"]
        return cls(
            folder,
            Path(saved["out"]),
            PrepareConfig(**{**config, "clean": CleanConfig(**config["clean"])}),
            saved["settings"],
            read_plan(folder / PLAN),
        )

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def set(self) -> Path:
        return self.folder / "set"

    def run(self, input_split: InputSplit) -> Path:
        return self.folder / "runs" / f"{input_split.number:05d}.run"

    def signed(self, shard: Shard) -> Path:
        return self.folder / "signed" / shard.name

    def piece(self, shard: Shard) -> Path:
        return self.folder / "pieces" / f"{shard.name}.json"

    @cached_property
    def totals(self) -> Totals:
        """Sum the counts of all input splits.

        Raises: DataError if an input split is not read yet, or if a split has no document.
        """
        totals = Totals()
        for input_split in self.plan.splits:
            path = self.run(input_split).with_suffix(".json")
            if not path.exists():
                raise DataError(f"input split {input_split.number} is not read; start again")
            found = read_json(path)
            for name in ("documents", "bytes", "dropped", "changed"):
                getattr(totals, name).update(found[name])
            totals.digest_sum = (totals.digest_sum + int(found["digest_sum"], 16)) % 2**256
        for split in SPLITS:
            if not totals.documents[split]:
                raise self.too_few(split, totals.documents, totals.dropped)
        return totals

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards, each of about shard_mb of text."""
        shards: list[Shard] = []
        for split in SPLITS:
            of = max(1, round(self.totals.bytes[split] / (self.config.shard_mb * 1e6)))
            shards += [Shard(len(shards) + n, split, n, of) for n in range(of)]
        return shards

    def gather(self, shard: Shard) -> Documents:
        """Return the distinct documents of a shard."""
        runs = [self.run(input_split) for input_split in self.plan.splits]
        return gather(runs, shard.split, shard.number, shard.of)

    def documents(self, shard: Shard) -> tuple[Documents, Documents]:
        """Return the documents that a shard keeps, and its near-duplicates, which it drops."""
        documents = self.gather(shard)
        dropped = np.empty(0, np.int64)
        if self.config.near_duplicates is not None:
            dropped = minhash.removed(self.folder / "minhash", shard.index)
        return documents.without(dropped), documents.only(dropped)

    def is_made(self) -> bool:
        """Whether the output folder already holds this shard set with all its files.

        Raises: DataError if it holds a set made of other text, or if files are missing or cut off.
        """
        if not (self.out / MANIFEST).exists():
            return False
        found = read_manifest(self.out).get("corpus_fingerprint")
        if found != self.totals.fingerprint:
            raise DataError(
                f"out={self.out} holds a shard set of other text (corpus_fingerprint {found}, now"
                f" {self.totals.fingerprint}); name a new folder, or remove this one"
            )
        check_files(self.out)
        return True

    def too_few(self, split: str, documents: Counter[str], dropped: Counter[str]) -> DataError:
        """Return the error for a split without documents.

        Args:
            split: train or validation.
            documents: number of documents by split, repeated ones included.
            dropped: number of dropped documents by rule.
        """
        rules = ", ".join(f"{rule} {count}" for rule, count in sorted(dropped.items()))
        if not documents.total():
            return DataError(
                f"no document was kept (dropped: {rules}); check --source, --column and --clean"
            )
        config, remedy = self.config, "raise" if split == "validation" else "lower"
        finer = config.source == "text" and config.document == "block"
        return DataError(
            f"no document fell into the {split} split: {documents.total()} documents (repeated ones"
            f" too) at validation_fraction={config.validation_fraction} (dropped:"
            f" {rules or 'none'}); give more text, {remedy} the fraction"
            f"{', or document=line' if finer else ''}"
        )


def read_plan(path: Path) -> ReadPlan:
    """Read plan.json, whose key for input splits is `units`."""
    found = read_json(path)
    return ReadPlan(
        tuple(found["files"]),
        tuple(found["file_bytes"]),
        tuple(InputSplit(**unit) for unit in found["units"]),
        tuple(found["stamps"]),
    )


def place_of(config: PrepareConfig) -> Path:
    """Return the absolute path of the output folder, links resolved: it appears by a rename."""
    return Path(os.path.realpath(config.out))


def folder_of(config: PrepareConfig) -> Path:
    """Return the path of the working folder: hidden, beside the output folder."""
    out = place_of(config)
    return out.parent / f".{out.name}.work"


@contextlib.contextmanager
def alone(config: PrepareConfig) -> Iterator[None]:
    """Hold the lock of the working folder; the lock file is removed afterwards.

    Raises: SystemFault if the output folder cannot be created; DataError if another process holds
        the lock, or another file has its name.
    """
    folder = folder_of(config)
    path = folder.parent / f"{folder.name}.lock"
    lock = FileLock(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)  # its errors are more precise than those of the lock
        if not any(folder.iterdir()):
            folder.rmdir()
        if path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size)):
            raise DataError(
                f"{path} is not a lock file of fitb, which would be empty; move it away, or name"
                " another folder with --out"
            )
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"out={config.out} is being made by another preparation right now; wait until it ends,"
            " or name another folder"
        ) from error
    except OSError as error:
        raise SystemFault(
            f"out={config.out} cannot be made: {error.strerror or error}; name another folder"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def check_place(out: Path) -> None:
    """Raise DataError if the output path holds anything but a shard set or an empty folder."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"out={out} is a file; name a new folder")
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise DataError(f"out={out} holds files that are no shard set; name a new folder")
        if os.path.ismount(out):
            raise DataError(
                f"out={out} is a mount point, which cannot be replaced by a rename; name a folder"
                " inside it"
            )


def enter_work(folder: Path) -> None:
    """Create the working folder and its marker unless they exist.

    Raises: DataError if the folder holds files but no marker.
    """
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    if names and _MARKER not in names:
        raise DataError(
            f"{folder} holds files that no preparation made ({', '.join(names)[:200]}); move it"
            " away, or name another folder with --out"
        )
    (folder / _MARKER).touch()


def clear_work(folder: Path) -> None:
    """Remove fitb's files from the working folder, except the marker; files of a user stay."""
    for path in list(folder.iterdir()):
        written = re.fullmatch(r"\.(.+)\.\d+\.(?:part|old)", path.name)  # temporary names of fsio
        name = written[1] if written else path.name
        if name not in _OWN or path.name == _MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leave_work(folder: Path) -> None:
    """Clear the working folder, and remove it if nothing else is in it."""
    clear_work(folder)
    if [path.name for path in folder.iterdir()] == [_MARKER]:  # removed last: a kill may come
        (folder / _MARKER).unlink()
        folder.rmdir()
