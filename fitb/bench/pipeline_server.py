"""transformers' fill-mask pipeline behind FastAPI: the baseline of `fitb serve`'s benchmark.

`python -m fitb.bench.pipeline_server MODEL` listens on a free loopback port, prints the URL, and
answers `POST /v1/fill` with {"texts": [...]} like `fitb serve`, in the pipeline's own format.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any


def main(model: str) -> None:
    """Serve the model of a folder until a signal ends the process."""
    import uvicorn
    from fastapi import Body, FastAPI
    from transformers import pipeline

    fill = pipeline("fill-mask", model=model, tokenizer=model, device="cpu")
    alone = threading.Lock()  # a pipeline is not thread-safe
    app = FastAPI()
    app.get("/healthz")(lambda: {"status": "ready"})

    @app.post("/v1/fill")
    def answer(texts: list[str] = Body(embed=True)) -> Any:  # noqa: B008
        with alone:
            return fill(texts, top_k=5)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening at http://127.0.0.1:{listener.getsockname()[1]}, ready", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
