"""A set of ten shards, and servers that hold it."""

import json
import logging

import fsspec
import numpy as np
import pytest
from caching import NUM_ROWS, SHARD_ROWS, bound
from file_server import FileServer
from moto.server import ThreadedMotoServer
from shard_files import add_documents, random_columns, write_manifest, write_set

from fitb.shards import remote as fetching
from fitb.shards.cache import CacheSettings
from fitb.shards.tokenizer import tokenizer_fingerprint


@pytest.fixture()
def impatient(monkeypatch):
    """Servers of this machine, asked again at once where they fail."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(fetching, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(fetching, "LONGEST_WAIT_S", 0.1)


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
def bucket(local, tmp_path, monkeypatch):
    """URL of a copy of the set on an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"corpora-{tmp_path.name.replace('_', '-')[-20:]}"  # all servers hold the same buckets
    filesystem.mkdir(name)
    filesystem.put(f"{local}/", f"{name}/set/", recursive=True)
    yield f"s3://{name}/set"
    server.stop()
