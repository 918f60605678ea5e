"""Reading and checking the manifest of a shard set.

A manifest is refused unless its fingerprint matches its entries, its totals are their sums, and its
file names have no folders.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitb.base.errors import DataError
from fitb.base.fsio import sha256_json
from fitb.shards.cache import TOKENIZER
from fitb.shards.mmap import REMEDY, check_size
from fitb.shards.remote import MissingFile, Remote

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INPUTS = "inputs.json"  # names of the input files
DOCUMENTS = "documents_file"  # optional key of an entry, with a count, bytes and sha256

# Versions of the algorithms that make rows of text (order of documents, cuts, word starts); 1 where
# a set names none. A change adds a version, so that runs on older sets continue.
ALGORITHMS = {"rows": 1}

_MOST = 2**48  # rows or bytes of a file, so that sums fit into 64 bits
_KEYS = ("fingerprint", "length", "shards", "splits", "tokenizer", "settings")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a shard set.

    Raises: DataError if it is missing, damaged, inconsistent, or of another version.
    """
    path = folder / MANIFEST
    try:
        return _checked_manifest(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise _no_set(str(folder)) from error


def remote_manifest(remote: Remote) -> dict[str, Any]:
    """Return the manifest of a remote shard set; raise as `read_manifest` and `Remote.read`."""
    try:
        return _checked_manifest(remote.read(MANIFEST), f"{remote.name}/{MANIFEST}")
    except MissingFile as error:
        raise _no_set(remote.name) from error


def _no_set(where: str) -> DataError:
    return DataError(
        f"{where} is not a shard set: it has no {MANIFEST}; name a folder that `fitb prepare` wrote"
    )


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Return the hash of `length`, `shards` and `tokenizer.fingerprint`, which decide the rows."""
    content = {
        "format_version": FORMAT_VERSION,
        "length": manifest["length"],
        "shards": manifest["shards"],
        "tokenizer": manifest["tokenizer"]["fingerprint"],
    }
    return sha256_json(content)


def _checked_manifest(content: bytes, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; {REMEDY}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format_version {version}, expected {FORMAT_VERSION}; use the version of"
            " fitb that wrote it, or run `fitb prepare` again"
        )
    algorithms = manifest.get("algorithms", {})
    if not isinstance(algorithms, dict) or any(
        version not in range(1, ALGORITHMS.get(name, 0) + 1) for name, version in algorithms.items()
    ):
        raise DataError(
            f"{path} was prepared with algorithms {algorithms}, expected at most {ALGORITHMS}; use"
            " the version of fitb that wrote it, or run `fitb prepare` again"
        )
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    try:
        wrong = next(_wrong(manifest), None)
    except UnicodeEncodeError as error:  # JSON can hold lone surrogates
        wrong = f"it holds a string that is not valid Unicode ({error})"
    if wrong:
        raise DataError(f"{path}: {wrong}; {REMEDY}")
    return dict(manifest)


def _wrong(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a manifest; each check assumes that the ones before passed."""
    objects = dict.fromkeys(("splits", "tokenizer", "settings"), dict)
    for name, kind in {"shards": list, **objects}.items():
        if not isinstance(manifest[name], kind):
            yield f"{name}={str(manifest[name])[:40]!r}, expected a {kind.__name__}"
    tokenizer = manifest["tokenizer"]
    yield from _not_counts(manifest, "length")
    yield from _not_counts(tokenizer, "vocab_size", "tokenizer.")
    files = tokenizer.get("files")
    if not isinstance(files, list) or not isinstance(tokenizer.get("fingerprint"), str):
        yield "tokenizer lacks its files or its fingerprint"
    for number, entry in enumerate(manifest["shards"]):
        yield from _wrong_entry(entry, f"shards[{number}]")
    documents = [entry[DOCUMENTS] for entry in manifest["shards"] if DOCUMENTS in entry]
    names = [entry["file"] for entry in manifest["shards"]] + documents
    for name in (*names, *files):
        plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not plain or name in ("", ".", ".."):
            yield f"it names the file {name!r}, expected a name without folders"
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        yield f"it names {twice[0]} {names.count(twice[0])} times, expected once"
    yield from _wrong_totals(manifest)
    found = fingerprint_of(manifest)
    if found != manifest["fingerprint"]:
        yield (
            f"its shards, length and tokenizer have the fingerprint {found}, expected"
            f" {manifest['fingerprint']}"
        )


def _wrong_totals(manifest: dict[str, Any]) -> Iterator[str]:
    for split in sorted({entry["split"] for entry in manifest["shards"]} | {*manifest["splits"]}):
        said = manifest["splits"].get(split)
        for key in ("rows", "documents"):
            found = [e.get(key) for e in manifest["shards"] if e["split"] == split]
            if None not in found and (not isinstance(said, dict) or said.get(key) != sum(found)):
                yield f"splits.{split} is {said}, expected {key} {sum(found)}, as its shards have"


def _wrong_entry(entry: Any, where: str) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where}={str(entry)[:40]!r}, expected an object"
    texts, counts = ["file", "split", "sha256"], ["rows", "bytes"]
    if DOCUMENTS in entry or "documents" in entry:
        texts += [DOCUMENTS, "documents_sha256"]
        counts += ["documents", "documents_bytes"]
    for key in texts:
        if not isinstance(entry.get(key), str):
            yield f"{where}.{key}={entry.get(key)!r}, expected text"
    for key in counts:
        yield from _not_counts(entry, key, f"{where}.")


def _not_counts(values: Mapping[str, Any], key: str, where: str = "") -> Iterator[str]:
    value = values.get(key)
    if type(value) is not int or not 0 < value < _MOST:
        yield f"{where}{key}={value!r}, expected a whole number from 1 to {_MOST - 1}"


def check_files(folder: Path) -> None:
    """Raise DataError if a file of a local set is missing or has another size."""
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        check_size(folder / entry["file"], entry["bytes"])
        if DOCUMENTS in entry:
            check_size(folder / entry[DOCUMENTS], entry["documents_bytes"])
    for name in manifest["tokenizer"]["files"]:
        if not (folder / TOKENIZER / name).is_file():
            raise DataError(f"{folder / TOKENIZER / name} is missing; {REMEDY}")
