"""A set of ten shards, and servers that hold it."""

import json
import shutil

import numpy as np
import pytest
from caching import NUM_ROWS, SHARD_ROWS, bound
from file_server import FileServer
from s3_server import s3_bucket
from shard_files import add_documents, random_columns, write_manifest, write_set

from fitb.shards import remote as fetching
from fitb.shards.cache import CacheSettings
from fitb.shards.tokenizer import tokenizer_fingerprint


@pytest.fixture()
def impatient(monkeypatch):
    """Servers are asked again at once where they fail."""
    monkeypatch.setattr(fetching, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(fetching, "LONGEST_WAIT_S", 0.1)


@pytest.fixture()
def copied(shard_set, tmp_path):
    return shutil.copytree(shard_set, tmp_path / "copy")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Ten shards of about the same size, documents beside the first, and a tokenizer."""
    folder = tmp_path_factory.mktemp("remote") / "set"
    folder.mkdir()
    write_set(folder, random_columns(NUM_ROWS, 32), SHARD_ROWS)
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] |= {
        "fingerprint": tokenizer_fingerprint(folder / "tokenizer"),
        "files": ["tokenizer.json", "tokenizer_config.json"],
    }
    write_manifest(folder, manifest)
    one = np.ones(3, np.int32)
    digest = np.ones((3, 16), np.uint8)
    add_documents(folder, 0, file=one, place=one.astype(np.int64), chars=one, digest=digest)
    return folder


@pytest.fixture()
def server(local):
    with FileServer(local) as serving:
        yield serving


@pytest.fixture()
def settings(local, tmp_path):
    return CacheSettings(str(tmp_path / "cache"), max_gb=bound(local) / 1e9, deadline_s=30.0)


@pytest.fixture()
def bucket(local, tmp_path):
    """URL of a copy of the set on an S3 server."""
    name = f"corpora-{tmp_path.name.replace('_', '-')[-20:]}"
    with s3_bucket(name) as filesystem:
        filesystem.put(f"{local}/", f"{name}/set/", recursive=True)
        yield f"s3://{name}/set"
