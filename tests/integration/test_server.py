"""`fitb serve` over loopback: what it answers, what it refuses, and what it never says."""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import HELD, TIMEOUT_S, Served, serving

from fitb.bench.load import drive, requests

SECRET_TEXT = "xylophone"
TOKEN = "a-token-nobody-may-read"
READ_S = 3.0
SLOW_CLIENTS = 500
WORDS = ("returns", "the", "list", "of", "a", "value", "when", "it", "is", "not", "none")


@pytest.fixture(scope="module")
def server(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ["--read_s", str(READ_S), "--limits.text_tokens", "20000"]
    with serving(tmp_path_factory.mktemp("server"), str(teacher), *flags) as served:
        yield served
        assert SECRET_TEXT not in served.log.read_text()


@pytest.fixture
def held(teacher: Path, tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    """A server with room for four texts, whose model stands still while a file exists."""
    hold = tmp_path / "hold"
    flags = ["--max_queue", "4", "--limits.texts", "4", "--deadline_s", "100"]
    env = {"FITB_TEST_HOLD": str(hold)}
    with serving(tmp_path, str(teacher), *flags, program=HELD, env=env) as served:
        yield served, hold


@pytest.fixture(scope="module")
def guarded(
    teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    """One that wants a token and gives up after a second; its model can be held as well."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN)
    flags = ["--token_file", str(folder / "token"), "--deadline_s", "1", "--host", "0.0.0.0"]
    env = {"FITB_TEST_HOLD": str(folder / "hold")}
    with serving(folder, str(teacher), *flags, program=HELD, token=TOKEN, env=env) as served:
        yield served, folder / "hold"
        assert "whoever reaches this machine" not in served.log.read_text()  # it wants a token
        assert TOKEN not in served.log.read_text()


def passes(hold: Path) -> list[int]:
    """Rows of each forward pass of a held model so far."""
    path = Path(f"{hold}.passes")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(what: Any) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def figure(served: Served, name: str) -> float:
    """Read a figure of /metrics."""
    _, text, _ = served.ask("/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


# What it answers.


def test_mixed_requests_at_once_are_answered_as_each_alone(server: Served) -> None:
    draw = random.Random(11)
    bodies = []
    for number in range(24):
        words = draw.choices(
            ["returns", "the", "list", "of", "a", "value", "when", "it", "is", "not", "none"], k=9
        )
        for blank in ["___", "[MASK]", "[SPAN]"][: 1 + number % 2]:
            words[draw.randrange(9)] = blank
        search = {
            "order": draw.choice(["left_to_right", "confidence", "refine"]),
            "beam": draw.randint(1, 3),
            "max_pieces": 2,
            "top_k": 3,
        }
        bodies.append({"text": " ".join(words), "search": search})
    alone = [server.fill(body)[0] for body in bodies]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda body: server.fill(body)[0], bodies))
    in_one = server.fill(*bodies)
    for one, other, third in zip(alone, together, in_one, strict=True):
        for found in (other, third):
            assert found["blanks"] == one["blanks"]
            assert len(found["fillings"]) == len(one["fillings"])
            for mine, theirs in zip(found["fillings"], one["fillings"], strict=True):
                assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
                assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_concurrent_requests_share_batches(server: Served) -> None:
    load = drive(f"{server.url}/v1/fill", requests(["a [MASK] b"] * 8), 16, 1.0, 0.2)
    assert load.failures == 0 and load.requests_per_s > 0
    batches = figure(server, 'fitb_batch_texts_count{model="student"}')
    assert figure(server, 'fitb_batch_texts_sum{model="student"}') > 1.5 * batches


def test_offsets_are_code_points_of_what_the_user_wrote(server: Served) -> None:
    text = "\U0001f600 na\u00efve ___ \U0001f600 [MASK]."
    (filled,) = server.fill(text)
    assert [text[b["begin"] : b["end"]] for b in filled["blanks"]] == ["___", "[MASK]"]
    for filling in filled["fillings"]:
        for answer in filling["answers"]:
            assert filling["sentence"][answer["begin"] : answer["end"]] == answer["text"]


def test_the_document_describes_what_it_serves_and_tools_that_read_it_find_no_fault(
    server: Served,
) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            if mode == GenerationMode.NEGATIVE and operation.path != "/v1/fill":
                continue  # there is nothing to send that could be wrong

            @settings(max_examples=40, deadline=None, derandomize=True, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call()
                # No schema says whether a text has blanks and how many tokens it takes, and
                # what is too large is refused before it is looked at.
                excluded = [positive_data_acceptance]
                if answer.status_code == 413:
                    excluded.append(negative_data_rejection)
                case.validate_response(answer, excluded_checks=excluded)

            check()
        tried.append(operation.path)
    assert set(tried) == {"/v1/fill", "/healthz", "/metrics"}


def test_health_metrics_and_unknown_paths(server: Served) -> None:
    status, content, _ = server.ask("/healthz")
    assert status == 200 and content["models"] == ["student"]
    before = figure(server, 'fitb_requests_total{path="/healthz",status="200"}')
    server.ask("/healthz")
    assert figure(server, 'fitb_requests_total{path="/healthz",status="200"}') == before + 1
    assert figure(server, "fitb_in_flight_requests") == 1  # this one
    for path, method, status in [("/nothing", "GET", 404), ("/v1/fill", "GET", 405)]:
        found, content, _ = server.ask(path, method=method)
        assert found == status and content["error"]


# What it refuses.


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b'{"texts": ["\xff\xfe ___"]}', 400, "not JSON"),
        (b"once upon a ___", 400, "not JSON"),
        ({"texts": ["nothing is missing"]}, 422, r"texts\[0\]: the text has no blank"),
        ({"texts": ["a ___", "___ " * 10_000]}, 422, r"texts\[1\]"),
        ({"texts": ["___ " * 4000]}, 422, "4000 blanks"),
        ({"texts": ["word " * 200 + "___"]}, 422, "the model reads at most"),
        ({"texts": ["___ " * 8]}, 422, "tokens through the model"),
        ({"texts": [{"text": "___", "constraints": [{"regex": "("}]}]}, 422, "regex"),
        ({"texts": ["___"], "model": "teacher"}, 422, "student"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong_with_it(
    server: Served, body: Any, status: int, said: str
) -> None:
    found, content, _ = server.ask(body=body)
    assert found == status
    assert re.search(said, content["error"])


def test_bodies_of_another_type_or_encoding_are_refused(server: Served) -> None:
    body = {"texts": ["a ___"]}
    assert server.ask(body=body, content_type="text/plain")[0] == 415
    assert server.ask(body=body, content_encoding="gzip")[0] == 415


@pytest.mark.parametrize("claims", [True, False])
def test_fifty_megabytes_are_refused_while_they_come(server: Served, claims: bool) -> None:
    big = b'{"texts": ["' + b"a" * 50_000_000
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        head = "POST /v1/fill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        if claims:
            client.sendall(f"{head}Content-Length: {len(big)}\r\n\r\n".encode())
            parts = [big]
        else:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            size = 1_000_000
            parts = [
                b"%x\r\n%s\r\n" % (len(part), part)
                for part in (big[at : at + size] for at in range(0, len(big), size))
            ] + [b"0\r\n\r\n"]
        for part in parts:
            client.sendall(part)
        answer = b""
        while more := client.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than 1,000,000 bytes" in answer


def test_heads_without_end_are_refused(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000)
        assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_500_slow_clients_keep_nobody_from_being_served_and_are_cut_off(server: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    connected, stop = threading.Event(), threading.Event()
    ends: list[bytes] = []

    async def slow(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"POST /v1/fill HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        if number % 2:  # some do not even end their head
            head += b"Content-Type: application/json\r\n\r\n"
        writer.write(head)
        answer = asyncio.ensure_future(reader.read())
        while not answer.done() and not stop.is_set():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.25)
        ends.append(answer.result() if answer.done() else b"open")
        writer.close()

    async def all_of_them() -> None:
        clients = [asyncio.ensure_future(slow(number)) for number in range(SLOW_CLIENTS)]
        await asyncio.sleep(0)
        connected.set()
        await asyncio.gather(*clients)

    thread = threading.Thread(target=asyncio.run, args=(all_of_them(),))
    thread.start()
    try:
        assert connected.wait(TIMEOUT_S)
        wait_for(lambda: figure(server, "process_open_fds") > SLOW_CLIENTS)
        for _ in range(10):
            assert server.fill("a ___ b")
        thread.join(TIMEOUT_S)
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert Counter(end[:13] for end in ends) == {b"HTTP/1.1 408 ": SLOW_CLIENTS}
    assert figure(server, "process_open_fds") < SLOW_CLIENTS


def test_a_regex_that_explodes_does_not_hang_the_server(server: Served) -> None:
    constraint = {"regex": r"(\w+\w+)+(\w+\w+)+(\w+\w+)+!"}
    text = {"text": "a [SPAN] b", "constraints": [constraint], "search": {"max_pieces": 8}}
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(server.ask, body={"texts": [text]})
        assert server.fill("a ___ b")
        status, _, _ = bad.result(TIMEOUT_S)
    assert status in (200, 422)
    assert server.fill("a ___ b")


# How it holds its bounds, and how it leaves.


def test_a_full_queue_a_deadline_and_an_orderly_stop(held: tuple[Served, Path]) -> None:
    served, hold = held
    hold.touch()
    body = {"texts": [f"{SECRET_TEXT} [MASK]"]}
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(served.ask, body=body)
        wait_for(lambda: passes(hold) == [1])
        waiting = [pool.submit(served.ask, body=body) for _ in range(4)]
        wait_for(lambda: figure(served, 'fitb_queue_texts{model="student"}') == 4)
        status, content, headers = served.ask(body=body)
        assert status == 503 and int(headers["retry-after"]) > 0 and "wait" in content["error"]
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


def test_a_request_whose_deadline_passes_in_the_queue_is_never_computed(
    guarded: tuple[Served, Path],
) -> None:
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


def test_a_token_is_required_where_there_is_one(guarded: tuple[Served, Path]) -> None:
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


def test_sigterm_under_load_leaves_no_accepted_request_without_its_answer(
    teacher: Path, tmp_path: Path
) -> None:
    """Clients keep their connections busy; each is told to leave with its last answer."""
    lost: list[str] = []
    answered: list[int] = []
    begun = threading.Barrier(17)

    def client(served: Served) -> None:
        body = json.dumps({"texts": ["returns a [MASK] of strings"]}).encode()
        head = f"POST /v1/fill HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        message = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", served.port), TIMEOUT_S) as connection:
            begun.wait(TIMEOUT_S)
            while True:
                try:
                    connection.sendall(message)
                    answer = _answer(connection)
                except OSError as error:
                    lost.append(type(error).__name__)
                    return
                if not answer.startswith(b"HTTP/1.1 200 "):
                    lost.append(answer[:40].decode(errors="replace"))
                    return
                answered.append(1)
                if b"connection: close" in answer:
                    return

    with serving(tmp_path, str(teacher), "--host", "0.0.0.0") as served:
        assert "whoever reaches this machine may use the model" in served.log.read_text()
        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, served) for _ in range(16)]
            begun.wait(TIMEOUT_S)
            wait_for(lambda: len(answered) > 50)
            code = served.stop()
            for future in clients:
                future.result(TIMEOUT_S)
        assert code == 0 and not lost
        assert "Traceback" not in served.log.read_text()


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fitb", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode in (2, 3), done.stderr
    assert str(tmp_path) in done.stderr and "Traceback" not in done.stderr


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


def _answer(connection: socket.socket) -> bytes:
    """Read one answer with its body; nothing where the connection was closed."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        if not more:
            return b""
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
