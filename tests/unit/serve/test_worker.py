"""What a worker keeps of a request, and when it gives one up."""

import asyncio
import gc
import time
import weakref

import pytest

pytest.importorskip("fastapi")
from fastapi import HTTPException

from fitb.infer.request import FillRequest
from fitb.serve.metrics import Metrics
from fitb.serve.serve_config import ServeConfig
from fitb.serve.worker import Worker
from tests.unit.infer.conftest import random_scorer

WAIT_S = 20.0


def filled(use):
    """Run a coroutine function of a worker over a small model."""

    async def run():
        loop = asyncio.get_running_loop()
        scorer = random_scorer()
        worker = Worker("student", scorer, ServeConfig("model"), Metrics(), loop)
        try:
            return await use(worker, loop)
        finally:
            worker.close(WAIT_S)

    return asyncio.run(run())


def test_nothing_of_a_refused_request_waits_for_the_garbage_collector():
    """Each refusal kept its texts, some megabytes, until all generations were collected."""

    async def use(worker, loop):
        refused = []
        for _ in range(4):
            request = FillRequest("no blank here")
            refused.append(weakref.ref(request))
            with pytest.raises(HTTPException):
                await worker.fill([request], time.monotonic() + WAIT_S, loop.create_future())
            del request
        await worker.fill([FillRequest("a ___")], time.monotonic() + WAIT_S, loop.create_future())
        return [one() for one in refused[:-1]]

    gc.disable()
    try:
        assert filled(use) == [None] * 3
    finally:
        gc.enable()


def test_a_request_whose_client_has_gone_is_given_up():
    async def use(worker, loop):
        gone = loop.create_future()
        gone.set_result(None)
        with pytest.raises(HTTPException):
            await worker.fill([FillRequest("a ___")], time.monotonic() + WAIT_S, gone)

    filled(use)
