"""`fitb serve` under load: how it holds its bounds, and how it leaves."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import HELD, TIMEOUT_S, Served, figure, serving, wait_for

SECRET_TEXT = "xylophone"
TOKEN = "a-token-nobody-may-read"
JSON = {"content-type": "application/json"}


@pytest.fixture
def held(teacher, tmp_path):
    """A server with room for four texts, whose model stands still while a file exists."""
    hold = tmp_path / "hold"
    flags = ["--max_queue", "4", "--limits.texts", "4", "--deadline_s", "100"]
    env = {"FITB_TEST_HOLD": str(hold)}
    with serving(tmp_path, str(teacher), *flags, program=HELD, env=env) as served:
        yield served, hold


@pytest.fixture(scope="module")
def guarded(teacher, tmp_path_factory):
    """One that wants a token and gives up after a second; its model can be held as well."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN)
    flags = ["--token_file", str(folder / "token"), "--deadline_s", "1", "--host", "0.0.0.0"]
    env = {"FITB_TEST_HOLD": str(folder / "hold")}
    with serving(folder, str(teacher), *flags, program=HELD, token=TOKEN, env=env) as served:
        yield served, folder / "hold"
        assert "without authentication" not in served.log.read_text()  # it wants a token
        assert TOKEN not in served.log.read_text()


def passes(hold):
    """Rows of each forward pass of a held model so far."""
    path = Path(f"{hold}.passes")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_full_queue_a_deadline_and_an_orderly_stop(held):
    served, hold = held
    hold.touch()
    body = {"texts": [f"{SECRET_TEXT} [MASK]"]}
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(served.ask, body=body)
        wait_for(lambda: passes(hold) == [1])
        waiting = [pool.submit(served.ask, body=body) for _ in range(4)]
        wait_for(lambda: figure(served, 'fitb_queue_texts{model="student"}') == 4)
        status, _, headers = served.ask(body=body)
        assert status == 503 and int(headers["retry-after"]) > 0
        assert served.ask("/healthz")[0] == 200
        served.process.terminate()
        wait_for(lambda: _refuses(served.port))
        assert served.process.poll() is None  # five are not answered yet
        hold.unlink()
        answers = [future.result(TIMEOUT_S) for future in (first, *waiting)]
    assert [status for status, _, _ in answers] == [200] * 5
    assert served.process.wait(TIMEOUT_S) == 0
    log = served.log.read_text()
    assert SECRET_TEXT not in log and "stopped" in log


def test_a_request_whose_deadline_passes_in_the_queue_is_never_computed(guarded):
    served, hold = guarded
    before = len(passes(hold))
    hold.touch()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.ask, body={"texts": ["a [MASK] b"]})
        wait_for(lambda: len(passes(hold)) == before + 1)
        second = served.ask(body={"texts": ["a [MASK] b", "c [MASK] d"]})
        assert second[0] == first.result(TIMEOUT_S)[0] == 504
        assert "deadline" in second[1]["error"]
    hold.unlink()
    wait_for(lambda: figure(served, 'fitb_queue_texts{model="student"}') == 0)
    assert served.fill("e [MASK] f")
    assert passes(hold)[before:] == [1, 1]  # the first, and the last


def test_a_token_is_required_where_there_is_one(guarded):
    served, _ = guarded
    for token in ("", "wrong"):
        other = Served(served.process, served.log, token)
        for status, content, headers in (
            other.ask(body={"texts": ["a ___"]}),
            other.ask("/metrics"),
        ):
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert TOKEN not in content["error"]
        assert other.ask("/healthz")[1]["token_required"] is True
    assert served.fill("a [MASK]")


def test_sigterm_under_load_leaves_no_accepted_request_without_its_answer(teacher, tmp_path):
    """Clients keep their connections busy; each is told to leave with its last answer."""
    lost: list[str] = []
    answered: list[int] = []
    begun = threading.Barrier(17)

    def client(served):
        body = json.dumps({"texts": ["returns a [MASK] of strings"]})
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.connect()
            begun.wait(TIMEOUT_S)
            while True:
                try:
                    connection.request("POST", "/v1/fill", body, JSON)
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == 200
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    lost.append(repr(error))
                    return
                answered.append(1)
                if answer.getheader("connection") == "close":
                    return

    with serving(tmp_path, str(teacher), "--host", "0.0.0.0") as served:
        assert "without authentication" in served.log.read_text()
        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, served) for _ in range(16)]
            begun.wait(TIMEOUT_S)
            wait_for(lambda: len(answered) > 50)
            code = served.stop()
            for future in clients:
                future.result(TIMEOUT_S)
        assert code == 0 and not lost
        assert "Traceback" not in served.log.read_text()


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    command = [sys.executable, "-m", "fitb", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode in (2, 3), done.stderr
    assert str(tmp_path) in done.stderr and "Traceback" not in done.stderr


def _refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False
