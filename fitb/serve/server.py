"""`fitb serve`: listen, load the models, serve, and shut down gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import threading
from types import FrameType

import torch
import uvicorn

from fitb.base.errors import SystemFault
from fitb.infer.scorer import Scorer, load_scorer
from fitb.serve.app import make_app
from fitb.serve.connection import Bounded, Places
from fitb.serve.metrics import Metrics
from fitb.serve.request_checks import TOKEN_VARIABLE, Token, read_token
from fitb.serve.serve_config import ServeConfig
from fitb.serve.worker import Worker

logger = logging.getLogger(__name__)
_BACKLOG = 2048
_SPARE_FILES = 100  # file descriptors besides those of connections
_LAME_DUCK_S = 0.5  # after SIGTERM, open connections are served with `connection: close`


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    The server listens at once and answers 503 until its models are loaded.

    Raises: FitbError if the configuration is invalid, the port is taken or a model cannot be
        loaded.
    """
    token = read_token(config.token_file, os.environ)
    if not config.is_local and token is None:
        logger.warning(
            "host=%s is reachable without authentication; set token_file or %s",
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
        server = Server(config, token)
        server.run(sockets=[listener])
    for worker in server.workers.values():
        worker.close(1.0)
    if server.failure is not None:
        raise server.failure
    logger.info("stopped")
    return 0


class Server(uvicorn.Server):
    """uvicorn's server, which loads its models in the background and exits with 0.

    Args:
        config: configuration of the server.
        token: bearer token that clients must send; None for no authentication.
    """

    def __init__(self, config: ServeConfig, token: Token | None) -> None:
        self.workers: dict[str, Worker] = {}  # by name of their model, once all are loaded
        self.failure: BaseException | None = None  # exception of the loading thread
        self._settings, self._metrics = config, Metrics()
        places = Places(config.max_connections, config.max_connections_per_address)
        limits = {"places": places, "read_s": config.read_s}
        super().__init__(
            uvicorn.Config(
                make_app(config, token, self._metrics, self.workers, lambda: self.should_exit),
                http=type("Connection", (Bounded,), limits),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # lower levels name clients
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(config.stop_s)),
                backlog=_BACKLOG,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then load the models in a thread."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=(loop,), name="fitb-load", daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and close idle connections after a lame-duck period.

        A client that uses its connection in that period gets its response with `connection: close`
        instead of a closed connection.
        """
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _LAME_DUCK_S
        while self.server_state.connections and loop.time() < until_s and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Like uvicorn's, which raises the signal again after a graceful shutdown."""
        self.force_exit |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            backend, threads = self._settings.backend, self._settings.threads
            sources = self._settings.sources.items()
            scorers = {name: load_scorer(source, backend, threads) for name, source in sources}
        except BaseException as error:
            self.failure = error
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self._ready, scorers, loop)

    def _ready(self, scorers: dict[str, Scorer], loop: asyncio.AbstractEventLoop) -> None:
        for name, scorer in scorers.items():
            self.workers[name] = Worker(name, scorer, self._settings, self._metrics, loop)
        # Keep the modules of PyTorch and transformers out of garbage collection: each full
        # collection would stall requests for 150 ms.
        gc.collect()
        gc.freeze()
        logger.info("ready")


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise SystemFault if the address is not available."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SystemFault(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files to `wanted`, or to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
