"""`fitb serve` over loopback: what it answers, what it refuses, and what it never says."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import selectors
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import TIMEOUT_S, assert_alike, figure, serving

from fitb.bench.load_generator import drive, requests

SECRET_TEXT = "xylophone"
READ_S = 3.0
SLOW_CLIENTS = 500
RESET = b"reset"


@pytest.fixture(scope="module")
def server(teacher, tmp_path_factory):
    flags = ["--read_s", str(READ_S), "--limits.text_tokens", "20000"]
    with serving(tmp_path_factory.mktemp("server"), str(teacher), *flags) as served:
        yield served
        assert SECRET_TEXT not in served.log.read_text()


# What it answers.


def test_mixed_requests_at_once_are_answered_as_each_alone(server):
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
    assert_alike(together, alone)
    assert_alike(in_one, alone)


def test_concurrent_requests_share_batches(server):
    load = drive(f"{server.url}/v1/fill", requests(["a [MASK] b"] * 8), 16, 1.0, 0.2)
    assert load.failures == 0 and load.requests_per_s > 0
    batches = figure(server, 'fitb_batch_texts_count{model="student"}')
    assert figure(server, 'fitb_batch_texts_sum{model="student"}') > 1.5 * batches


def test_the_document_describes_what_it_serves_and_tools_that_read_it_find_no_fault(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            if mode == GenerationMode.NEGATIVE and operation.path != "/v1/fill":
                continue  # there is nothing to send that could be wrong

            @settings(max_examples=40, deadline=None, derandomize=True, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
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


def test_health_metrics_and_unknown_paths(server):
    status, content, _ = server.ask("/healthz")
    assert status == 200 and content["models"] == ["student"]
    before = figure(server, 'fitb_requests_total{path="/healthz",status="200"}')
    server.ask("/healthz")
    assert figure(server, 'fitb_requests_total{path="/healthz",status="200"}') == before + 1
    assert figure(server, "fitb_in_flight_requests") == 1  # this one
    assert server.ask(body={"texts": ["a ___"]}, content_type="text/plain")[0] == 415
    for path, method, status in [("/nothing", "GET", 404), ("/v1/fill", "GET", 405)]:
        found, content, _ = server.ask(path, method=method)
        assert found == status and content["error"]


# What it refuses.


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        ({"texts": ["nothing is missing"]}, 422, r"texts\[0\]: the text has no blank"),
        ({"texts": ["a ___", "___ " * 10_000]}, 422, r"texts\[1\]"),
        ({"texts": ["word " * 5000 + "___"]}, 422, r"texts\[0\].* 20000 characters"),
        ({"texts": ["___ " * 8]}, 422, "tokens through the model"),
        ({"texts": [{"text": "___", "constraints": [{"regex": "("}]}]}, 422, "regex"),
        ({"texts": ["___"], "model": "teacher"}, 422, "student"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong_with_it(server, body, status, said):
    found, content, _ = server.ask(body=body)
    assert found == status
    assert re.search(said, content["error"])


@pytest.mark.parametrize("claims", [True, False])
def test_fifty_megabytes_are_refused_while_they_come(server, claims):
    big = b'{"texts": ["' + b"a" * 50_000_000
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        head = "POST /v1/fill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if claims:
            client.sendall(f"{head}Content-Length: {len(big)}\r\n\r\n".encode() + big)
        else:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(0, len(big), size := 1_000_000):
                part = big[at : at + size]
                client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            client.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than 1,000,000 bytes" in answer


def test_heads_without_end_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000)
        assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_500_slow_clients_keep_nobody_from_being_served_and_are_cut_off(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    head = b"POST /v1/fill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    ends: Counter[bytes] = Counter()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for number in range(SLOW_CLIENTS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            # Some do not even end their head.
            client.sendall(head + b"Content-Type: application/json\r\n\r\n" * (number % 2))
            waiting.register(client, selectors.EVENT_READ)
        assert figure(server, "process_open_fds") > SLOW_CLIENTS
        for _ in range(10):
            assert server.fill("a ___ b")
        while clients := [key.fileobj for key in waiting.get_map().values()]:
            for client in clients:
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"x")
            for key, _ in waiting.select(0.25):
                waiting.unregister(key.fileobj)
                try:
                    ends[key.fileobj.recv(13)] += 1
                except ConnectionResetError:  # its last byte met the closed connection
                    ends[RESET] += 1
    assert ends[b"HTTP/1.1 408 "] + ends[RESET] == SLOW_CLIENTS > 10 * ends[RESET]
    assert figure(server, "process_open_fds") < SLOW_CLIENTS
