"""A bucket of an S3 server on this machine, which the environment names."""

import contextlib
import logging
import os
from unittest import mock

import s3fs
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def s3_bucket(name):
    """Yield a filesystem that has an empty bucket; all servers of a process hold the same ones."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with mock.patch.dict(os.environ, names):
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
        filesystem.mkdir(name)
        yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
