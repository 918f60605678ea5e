"""`fitb serve`: listen, load, answer, and leave in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import threading

import torch
import uvicorn

from fitb.errors import SystemFault
from fitb.infer.scorer import Scorer, load_scorer
from fitb.serve.app import State, make_app
from fitb.serve.config import ServeConfig
from fitb.serve.connection import Places, Server, bounded
from fitb.serve.endpoint import FillEndpoint
from fitb.serve.filler import Filler
from fitb.serve.gate import Gate
from fitb.serve.limits import TOKEN_VARIABLE, Token, hosts_of, read_token
from fitb.serve.metrics import Metrics
from fitb.serve.schema import request_model

logger = logging.getLogger(__name__)
_BACKLOG = 2048
_SPARE_FILES = 100  # besides connections


def load(source: str, config: ServeConfig) -> Scorer:
    """Load what fills blanks from a folder or a hub name."""
    return load_scorer(source, config.backend, config.threads)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT; return an exit code.

    The server listens at once and answers 503 until its models are loaded.

    Raises: FitbError where the configuration, the port or a model is no good.
    """
    token = read_token(config.token_file, os.environ)
    if not config.is_local and token is None:
        logger.warning(
            "host=%s: whoever reaches this machine may use the model; set token_file or %s",
            config.host,
            TOKEN_VARIABLE,
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    _allow_files(config.max_connections + _SPARE_FILES)
    with contextlib.closing(_listen(config.host, config.port)) as listener:
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        logger.info("listening at http://%s:%d, loading %s", address, port, config.model)
        _Run(config, token).until_stopped(listener)
    logger.info("stopped")
    return 0


class _Run:
    """From the first request to the last."""

    def __init__(self, config: ServeConfig, token: Token | None) -> None:
        self._config = config
        self._metrics, self._state = Metrics(), State()
        names = ["student", *(["teacher"] if config.teacher else [])]
        body = request_model(config.limits, names)
        gate = Gate(
            FillEndpoint(config, token, body, self._state.fillers),
            make_app(token, self._metrics, self._state, names, body),
            self._metrics,
            hosts_of(config, token is not None),
            lambda: self._state.stopping,
        )
        settings = uvicorn.Config(
            gate,
            http=bounded(
                Places(config.max_connections, config.max_connections_per_address), config.read_s
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what is below tells of clients
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(config.stop_s)),
            backlog=_BACKLOG,
        )
        self._server = Server(settings, self._begin, self._stop)
        self._failure: BaseException | None = None

    def until_stopped(self, listener: socket.socket) -> None:
        """Answer until told to stop; raise what a failed load raised."""
        self._server.run(sockets=[listener])
        for filler in self._state.fillers.values():
            filler.close(1.0)
        if self._failure is not None:
            raise self._failure

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=(loop,), name="fitb-load", daemon=True).start()

    def _stop(self) -> None:
        self._state.stopping = True

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        sources = {"student": self._config.model, "teacher": self._config.teacher}
        try:
            scorers = {
                name: load(source, self._config) for name, source in sources.items() if source
            }
        except BaseException as error:
            self._failure = error
            self._server.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self._ready, scorers, loop)

    def _ready(self, scorers: dict[str, Scorer], loop: asyncio.AbstractEventLoop) -> None:
        for name, scorer in scorers.items():
            self._state.fillers[name] = Filler(name, scorer, self._config, self._metrics, loop)
        # What is here stays. Looked through for garbage with all else, every now and then, it would
        # hold up each text under way: 150 ms for the modules of PyTorch and transformers.
        gc.collect()
        gc.freeze()
        logger.info("ready")


def _listen(host: str, port: int) -> socket.socket:
    """Raises: SystemFault where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SystemFault(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
