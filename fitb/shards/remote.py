"""Fetching files from a folder at a URL through fsspec: retries, and no secrets in messages."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fitb.base.errors import ConfigError, DataError, FitbError, SystemFault, nearest
from fitb.base.fsio import naming_full_disk
from fitb.base.redact import redacted

REFUSALS = 3  # consecutive answers "not found" or "forbidden" before one is final
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # between two tries
SILENCE_S = 30.0  # timeout for an http connection and for each read from it
_POLL_S = 0.05  # interval of polling for a lock of another process

logger = logging.getLogger(__name__)

T = TypeVar("T")


class MissingFile(DataError):
    """A server answered that a file does not exist."""


def is_remote(where: str | Path) -> bool:
    return isinstance(where, str) and "://" in where and not where.startswith("file://")


def local_folder(where: str | Path) -> Path:
    """Return the folder of a path or a file:// URL."""
    return Path(where.removeprefix("file://")) if isinstance(where, str) else where


class Remote:
    """The folder at a URL.

    Args:
        url: URL of an fsspec protocol; its query is appended to the name of every file.
        deadline_s: seconds for one file, all tries together.
    Raises: ConfigError if the protocol is unknown or its library is missing.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        self.name = redacted(url).rstrip("/")
        self.deadline_s = deadline_s
        self.cancelled = threading.Event()  # while it is set, every wait ends with SystemFault
        self._fs, base = _filesystem(url)
        self._base, mark, query = base.partition("?") if "://" in base else (base, "", "")
        self._query = mark + query

    def read(self, name: str) -> bytes:
        """Return the content of a small file; raise as `fetch`."""
        return bytes(self._patiently(name, lambda: self._fs.cat_file(self._at(name))))

    def fetch(self, name: str, handle: int, path: Path, until_s: float | None = None) -> None:
        """Copy a remote file into an open local file.

        Args:
            name: name of the remote file.
            handle: descriptor of the local file, readable and writable.
            path: path of the local file, for messages.
            until_s: time.monotonic() of the last try; None means deadline_s from now.
        Raises: MissingFile or DataError if the server refuses; SystemFault if no server answers in
            time, the disk is full, or the wait was cancelled.
        """
        from fsspec.callbacks import Callback

        # It is called between two parts of a file.
        callback = Callback(hooks={"cancel": lambda *_: self._check_cancelled()})

        def copy() -> None:
            os.ftruncate(handle, 0)  # an earlier try may have written
            os.lseek(handle, 0, os.SEEK_SET)
            with naming_full_disk(path):  # the path itself may name another file by now
                self._fs.get_file(self._at(name), f"/dev/fd/{handle}", callback=callback)

        self._patiently(name, copy, until_s)

    def pause(self) -> None:
        """Sleep one polling interval; raise SystemFault if waits are cancelled."""
        self.cancelled.wait(_POLL_S)
        self._check_cancelled()

    def _at(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}{self._query}"

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise SystemFault(f"reading {self.name} was cancelled; start again")

    def _patiently(self, name: str, work: Callable[[], T], until_s: float | None = None) -> T:
        from tenacity import Retrying, retry_if_exception, wait_exponential, wait_random
        from tenacity.nap import sleep_using_event

        until_s = time.monotonic() + self.deadline_s if until_s is None else until_s
        refusals = 0

        def give_up(state: Any) -> bool:
            nonlocal refusals
            refusals = refusals + 1 if _refuses(state.outcome.exception()) else 0
            late = time.monotonic() >= until_s
            return refusals >= REFUSALS or late or self.cancelled.is_set()

        def log(state: Any) -> None:
            reason = _reason(state.outcome.exception())
            wait_s = state.next_action.sleep
            logger.warning("%s/%s: %s; again in %.1f s", self.name, name, reason, wait_s)

        # Every filesystem has its own exceptions, so all but refusals count as transient.
        tries = Retrying(
            retry=retry_if_exception(lambda e: not isinstance(e, FitbError)),
            stop=give_up,
            wait=wait_exponential(FIRST_WAIT_S, LONGEST_WAIT_S) + wait_random(0, FIRST_WAIT_S),
            sleep=sleep_using_event(self.cancelled),
            before_sleep=log,
            reraise=True,
        )
        try:
            return tries(work)
        except FitbError:
            raise
        except Exception as error:
            raise self._fault(name, error) from error

    def _fault(self, name: str, error: Exception) -> FitbError:
        where = f"{self.name}/{name}"
        if self.cancelled.is_set():
            return SystemFault(f"reading {self.name} was cancelled; start again")
        if isinstance(error, FileNotFoundError):
            return MissingFile(f"{where} is missing; copy the set there again")
        if _refuses(error):
            return DataError(f"{where} is refused: {_reason(error)}; give this job the credentials")
        return SystemFault(
            f"no server sent {where} within {self.deadline_s:g} s (last error: {_reason(error)});"
            " repair the server or the network and start again, or raise data.fetch_deadline_s"
        )


def _filesystem(url: str) -> tuple[Any, str]:
    """Return an unshared fsspec filesystem, and the path in it."""
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            silence = aiohttp.ClientTimeout(sock_connect=SILENCE_S, sock_read=SILENCE_S)
            # Without this, fsspec allows five minutes per file. Proxies come from the environment.
            options["client_kwargs"] = {"timeout": silence, "trust_env": True}
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError as error:
        raise ConfigError(
            f"{redacted(url)} needs a library that is not installed ({error}); pip install"
            " 'fitb[remote]' (http and s3)"
        ) from error
    except ValueError as error:
        near = nearest(protocol, fsspec.available_protocols())
        raise ConfigError(
            f"{redacted(url)}: unknown protocol {protocol!r}{near}; use a folder, file://, https://,"
            " s3:// or another that fsspec knows"
        ) from error
    return filesystem, path


def _refuses(error: BaseException) -> bool:
    """Whether a server answered with a refusal; botocore's error by name, to avoid its import."""
    no = isinstance(error, (FileNotFoundError, PermissionError))
    status = getattr(error, "status", None)
    return no or status in (401, 403, 410) or type(error).__name__ == "NoCredentialsError"


def _reason(error: BaseException) -> str:
    told = error if str(error) else error.__cause__ or error  # fsspec's timeouts have no message
    first = str(told).strip().partition("\n")[0]
    return redacted(f"{type(told).__name__}: {first}")
