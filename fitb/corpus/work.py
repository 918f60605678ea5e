"""The folder where a preparation works: beside the one it makes, and kept if it is interrupted.

What fitb writes in it appears by a rename, so what is there is done. A second start of the same
preparation does what is missing; another one is refused, and so is a second one at the same time.

    settings.json plan.json        what is made, of which input splits of the input
    tokenizer/                     given, or trained
    runs/00017.run .arrow .json    documents of an input split, sorted; what was dropped; counts
    minhash/ signed/               near-duplicates
    pieces/train-00003.json        a shard that is written, in set/
    set/                           becomes the shard set
    jobs.json                      Slurm's ids of the stages
    stages/                        Slurm's logs and submitit's files of the stages
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import fitb
from fitb.base.errors import DataError
from fitb.base.fsio import folder_written_whole, read_json, sha256_json, write_json
from fitb.base.job_states import ENDED
from fitb.cluster import slurm
from fitb.corpus import minhash
from fitb.corpus.clean import CleanConfig, Cleaner
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.sorted_runs import SPLITS, Documents, Kept, gather
from fitb.corpus.sources import InputSplit, ReadPlan, plan
from fitb.corpus.tokenizer import add_tokens, read_tokens, take_tokenizer
from fitb.corpus.work_lock import (
    FOLDERS,
    JOBS,
    PLAN,
    SETTINGS,
    check_place,
    clear_work,
    enter_work,
    folder_of,
    leave_work,
    place_of,
)
from fitb.shards.manifest import FORMAT_VERSION, MANIFEST, check_files, read_manifest
from fitb.shards.tokenizer import tokenizer_fingerprint
from fitb.shards.write import shard_name

# Names of places do not count: texts and tokenizers are compared by their fingerprints.
_PLACES = ("files", "tokenizer", "add_tokens")

_NEWER = {"joiners", "lowercase", "strip_accents"}  # keys that format_version 2 began without
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A range of keys of one split, before and after it is a file.

    Args:
        index: over both splits, training first.
        split: train or validation.
        number: in its split.
        of: shards of its split.
    """

    index: int
    split: str
    number: int
    of: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number).removesuffix(".arrow")


@dataclass(frozen=True)
class Totals:
    """What all input splits gave: documents, text, and what was mended or dropped on the way."""

    kept: Kept
    dropped: dict[str, int]
    changed: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """Of all cleaned texts, repeated ones too, whatever their order."""
        return f"{self.kept.digest_sum:064x}"


@dataclass(frozen=True)
class Work:
    """A preparation under way, seen from any process.

    Args:
        folder: where it works, absolute.
        out: the folder to make, absolute.
        config: what is asked for.
        settings: what the manifest will say of it.
        plan: input splits of the input.
    """

    folder: Path
    out: Path
    config: PrepareConfig
    settings: dict[str, Any]
    plan: ReadPlan = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Work:
        """Enter a preparation that `begin` began."""
        saved = read_json(folder / SETTINGS)
        config = saved["config"]
        return cls(
            folder,
            Path(saved["out"]),
            PrepareConfig(**{**config, "clean": CleanConfig(**config["clean"])}),
            saved["settings"],
            _read_plan(folder / PLAN),
        )

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

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
        """Sums over all input splits.

        Raises: DataError where an input split is not read, or a split has no document.
        """
        totals = Totals(Kept(), Counter(), Counter())
        for input_split in self.plan.splits:
            path = self.run(input_split).with_suffix(".json")
            if not path.exists():
                raise DataError(f"input split {input_split.number} is not read; start again")
            found = read_json(path)
            for split in SPLITS:
                totals.kept.documents[split] += found["documents"][split]
                totals.kept.bytes[split] += found["bytes"][split]
            digest_sum = totals.kept.digest_sum + int(found["digest_sum"], 16)
            totals.kept.digest_sum = digest_sum % 2**256
            for name in ("dropped", "changed"):
                for rule, count in found[name].items():
                    getattr(totals, name)[rule] += count
        for split in SPLITS:
            if not totals.kept.documents[split]:
                raise DataError(too_few(split, totals, self.config))
        return totals

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards, of about shard_mb of text each."""
        shards: list[Shard] = []
        for split in SPLITS:
            of = max(1, round(self.totals.kept.bytes[split] / (self.config.shard_mb * 1e6)))
            shards += [Shard(len(shards) + n, split, n, of) for n in range(of)]
        return shards

    def gather(self, shard: Shard) -> Documents:
        """Return the different documents of a shard."""
        runs = [self.run(input_split) for input_split in self.plan.splits]
        return gather(runs, shard.split, shard.number, shard.of)

    def documents(self, shard: Shard) -> tuple[Documents, Documents]:
        """Return the documents that a shard is made of, and its near-duplicates, left out."""
        documents = self.gather(shard)
        near = self.config.near_duplicates is not None
        alike = (
            minhash.removed(self.folder / "minhash", shard.index) if near else np.empty(0, np.int64)
        )
        return documents.without(alike), documents.only(alike)

    def is_made(self) -> bool:
        """Whether the folder holds this shard set already, all of it.

        Raises: DataError where it holds a set of other text, or files are missing or cut off.
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


def too_few(split: str, totals: Totals, config: PrepareConfig) -> str:
    """Say that a split has no document, and what would give it one."""
    remedy = "raise" if split == "validation" else "lower"
    finer = ", or document=line" if config.source == "text" and config.document == "block" else ""
    dropped = ", ".join(f"{rule} {count}" for rule, count in sorted(totals.dropped.items()))
    kept = sum(totals.kept.documents.values())
    if not kept:
        return f"no document was kept (dropped: {dropped}); check --source, --column and --clean"
    return (
        f"no document fell into the {split} split: {kept} documents (repeated ones too) at"
        f" validation_fraction={config.validation_fraction} (dropped: {dropped or 'none'});"
        f" give more text, {remedy} the fraction{finer}"
    )


def begin(config: PrepareConfig) -> Work:
    """Begin a preparation, or go on with one of the same settings and input.

    Raises: ConfigError, DataError; then nothing new is left.
    """
    folder = folder_of(config)
    check_place(place_of(config))
    _refuse_twins(config, folder)
    Cleaner(config.clean)  # a library that is missing is told now, not by a task
    enter_work(folder)
    if (folder / SETTINGS).exists():
        return _begin(config, folder, read_json(folder / SETTINGS))
    clear_work(folder)
    try:
        return _begin(config, folder, None)
    except BaseException:
        leave_work(folder)
        raise


def _refuse_twins(config: PrepareConfig, folder: Path) -> None:
    """Refuse a preparation whose Slurm jobs are queued or running."""
    if not (folder / JOBS).exists() or not slurm.is_here():
        return
    name, job = list(read_json(folder / JOBS).items())[-1]
    state = slurm.job_state(job)
    if state not in ENDED:
        raise DataError(
            f"out={config.out} is being made by Slurm jobs (the last, {name}, is {job}: {state});"
            " wait for its end, or cancel them, or name another folder"
        )


def _begin(config: PrepareConfig, folder: Path, old: dict[str, Any] | None) -> Work:
    out = place_of(config)
    tokens = read_tokens(Path(config.add_tokens)) if config.add_tokens else []
    given = folder / "given"  # taken anew at every start, and compared with the one before
    shutil.rmtree(given, ignore_errors=True)
    if config.tokenizer is not None:
        with folder_written_whole(given) as scratch:
            take_tokenizer(config.tokenizer, scratch)
            if tokens:
                add_tokens(scratch, tokens)
    settings = _settings(config, given, tokens)
    if (out / MANIFEST).exists():
        _compare(read_manifest(out)["settings"], settings, f"out={out} holds a shard set")
    if old is not None:
        _compare(old["settings"], settings, f"{folder} holds an unfinished preparation")
    planned = plan(config.text_source(), split_mb=4 * config.shard_mb, max_mb=config.max_mb)
    if old is not None and _read_plan(folder / PLAN) != planned:
        logger.warning("the input has changed since %s was begun; starting anew", folder)
        for name in FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        if config.tokenizer is None:
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    if config.tokenizer is not None and not (folder / "tokenizer").exists():
        given.rename(folder / "tokenizer")
    shutil.rmtree(given, ignore_errors=True)
    write_json(folder / PLAN, _plan_json(planned))
    saved = {"out": str(out), "config": asdict(config), "settings": settings}
    write_json(folder / SETTINGS, saved)
    return Work(folder, out, config, settings, planned)


def _plan_json(found: ReadPlan) -> dict[str, Any]:
    content = asdict(found)
    return {"units" if key == "splits" else key: value for key, value in content.items()}


def _read_plan(path: Path) -> ReadPlan:
    found = read_json(path)
    return ReadPlan(
        tuple(found["files"]),
        tuple(found["file_bytes"]),
        tuple(InputSplit(**unit) for unit in found["units"]),
        tuple(found["stamps"]),
    )


def _settings(config: PrepareConfig, tokenizer: Path, tokens: list[str]) -> dict[str, Any]:
    """Return what the manifest keeps: what decides the bytes, and the names of places."""
    settings = asdict(config)
    for name in ("out", "workers"):
        del settings[name]
    for keys, default in ((settings, PrepareConfig("")), (settings["clean"], CleanConfig())):
        for name in _NEWER & keys.keys():
            if keys[name] == getattr(default, name):
                del keys[name]  # sets made before there was this key are the same
    given = config.tokenizer is not None
    settings["tokenizer_fingerprint"] = tokenizer_fingerprint(tokenizer) if given else None
    settings["added_tokens"] = sha256_json(tokens) if tokens else None
    if config.near_duplicates is not None:
        settings["near_duplicate_words"] = minhash.WORDS
    settings["fitb_version"] = fitb.__version__
    settings["format_version"] = FORMAT_VERSION
    return settings


def _compare(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    keys = sorted((before.keys() | now.keys()) - set(_PLACES))
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in keys
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise DataError(
            f"{what} of other settings ({'; '.join(changed)}); name a new folder, or remove this"
            " one"
        )
