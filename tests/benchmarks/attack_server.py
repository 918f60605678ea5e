"""`fitb serve` under clients that mean harm, and what another client sees of it.

    python tests/benchmarks/attack_server.py --seconds 15 [MODEL]

For each attack a server is started on loopback and attacked for some seconds by a few clients,
while another process sends one short text every 100 ms. Printed are the latency of the short texts,
how many were not answered with 200, what the attackers got, and the memory of the server at rest
and at most. Without a model folder it makes one: random weights, 4 layers of 312, 30,522 pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))

from serving import Served, serving, wait_for  # noqa: E402 - after the path

CLIENTS = 4  # of an attack that sends requests
PAUSE_S = 0.1  # between two short texts
PATIENCE_S = 30.0  # after which an attacker or the other client gives an answer up
READ_S = 5.0  # of the server
BODY = {"texts": ["Returns a ___ of strings."]}
HEAD = "POST /v1/fill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

COMPILE_BOMBS = (
    "(?:(?:(?:a{9999}){9999}){9999}){9999}",
    "(?:(?:a{9999}){9999})",
    "(?:(?:ab?){999}){999}",
    "((a{99}){99}){99}",
    r"\p{L}{0,5000}",
    r"(\w{1,99}\w{1,99}){1,99}",
    "(" * 90 + "a" + ")*" * 55,
)
MATCH_BOMBS = (
    r"(\w+\w+)+(\w+\w+)+(\w+\w+)+!",
    r"(x+x+)+y",
    r"(a|b)*a(a|b){200}",
    r"(.*.*)*=",
    r"(\w?\d?){99}\W",
)


@dataclass
class Attack:
    """Attackers at work.

    Args:
        port: of the server.
        until_s: on the clock of time.monotonic, when they stop.
        patience_s: after which they give an answer up.
        answers: statuses that they were answered with, or why there was none.
    """

    port: int
    until_s: float
    patience_s: float = PATIENCE_S
    answers: Counter[str] = field(default_factory=Counter)

    def goes_on(self) -> bool:
        return time.monotonic() < self.until_s

    def flood(self, bodies: Sequence[Any], **headers: str) -> None:
        """Send bodies in turn from a few clients, each as soon as the last was answered."""
        encoded = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in bodies]

        def client(number: int) -> None:
            while self.goes_on():
                body = encoded[number % len(encoded)]
                self.answers[ask(self.port, body, self.patience_s, **headers)] += 1
                number += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))

    @contextlib.contextmanager
    def connected(self, number: int, first: bytes) -> Iterator[list[socket.socket]]:
        """Open connections, each with its first bytes sent; count those that were closed."""
        opened: list[socket.socket] = []
        try:
            for _ in range(number):
                with contextlib.suppress(OSError):
                    client = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
                    opened.append(client)
                    client.sendall(first)
            yield opened
        finally:
            for client in opened:
                client.close()

    def dribble(self, number: int, first: bytes) -> None:
        """Hold connections, a byte each every quarter of a second; open closed ones anew."""
        while self.goes_on():
            with self.connected(number, first) as clients:
                while clients and self.goes_on():
                    time.sleep(0.25)
                    for client in list(clients):
                        try:
                            client.sendall(b"x")
                        except OSError:
                            clients.remove(client)
                            client.close()
                            self.answers["cut"] += 1


def ask(port: int, body: bytes, patience_s: float, **headers: str) -> str:
    """Return the status of a request to fill, or the name of what came instead."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience_s)
    sent = {"content-type": "application/json", **headers}
    try:
        with contextlib.closing(connection):
            connection.request("POST", "/v1/fill", body, sent)
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def text_with(constraint: Any, text: str = "a [SPAN] b", **search: Any) -> dict[str, Any]:
    return {"text": text, "constraints": [constraint], "search": {"max_pieces": 8, **search}}


_MANY_WORDS = {
    "candidates": [f"w{number}" for number in range(1000)],
    "banned": [f"b{number}" for number in range(1000)],
}
_REFINED = {
    "text": "[SPAN] [MASK]",
    "constraints": [{"candidates": _MANY_WORDS["candidates"]}, {}],
    "search": {"order": "refine", "max_pieces": 1},
}
_LONG_CANDIDATES = [
    text_with({"candidates": ["ab" * 9999]}, "un___ b"),
    text_with({"prefix": "a" * 19_999}),
]
_ANSWERED_LONG = {"text": " " * 300 + "[MASK]" * 15, "search": {"top_k": 50}}
_KEYS = {f"k{number}": 0 for number in range(70_000)}
# Bodies that some clients send in turn.
FLOODS: dict[str, list[Any]] = {
    "compile_bombs": [{"texts": [text_with({"regex": regex})]} for regex in COMPILE_BOMBS],
    "match_bombs": [{"texts": [text_with({"regex": regex})] * 64} for regex in MATCH_BOMBS],
    "line_ends": [
        {"texts": ["aa " + "\n" * 19_900 + "a. ___"]},
        {"texts": ["aa " + "\n \n" * 6_000 + "(\t___"]},
    ],
    "candidates_and_banned": [{"texts": [text_with(_MANY_WORDS, "a [SPAN] [MASK]")] * 40}],
    "refined_candidates": [{"texts": [_REFINED] * 16}],
    "long_candidates": [{"texts": _LONG_CANDIDATES * 20}],
    "largest_requests": [  # the most tokens, positions and passes that the limits admit
        {"texts": [text_with({}, "word " * 60 + "___ " * 5 + "[SPAN]", max_pieces=2, beam=3)] * 64},
        {"texts": [text_with({}, "x " * 9 + "[SPAN]", beam=16, order="refine")] * 64},
        {"texts": [text_with({}, "word " * 115 + "[SPAN]", beam=16, max_pieces=4)] * 64},
    ],
    "largest_answers": [
        {"texts": [_ANSWERED_LONG] * 48},
        {"texts": [{**_ANSWERED_LONG, "text": " " * 19990 + "[MASK]"}]},
    ],
    "many_keys": [
        {"texts": ["a ___"], **_KEYS},
        {"texts": [{"text": "a ___", **_KEYS}]},
        {"texts": [text_with({"candidates": [0] * 1000})] * 100},
    ],
}


def nobody(attack: Attack) -> None:
    """Show what the machine takes by itself, to hold the others against."""


def clients_that_leave(attack: Attack) -> None:
    attack.patience_s = 0.2
    attack.flood([{"texts": [text_with({"regex": MATCH_BOMBS[0]})] * 64}])


def clients_that_never_read(attack: Attack) -> None:
    body = json.dumps({"texts": [{"text": " " * 19000 + "[MASK]", "search": {"top_k": 50}}]})
    while attack.goes_on():
        with attack.connected(100, f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode()):
            attack.answers["sent"] += 100
            time.sleep(max(0.0, min(3.0, attack.until_s - time.monotonic())))


def slow_connections(attack: Attack) -> None:
    attack.dribble(200, f"{HEAD}X: ".encode())


def bodies_that_never_end(attack: Attack) -> None:
    attack.dribble(150, f"{HEAD}Content-Length: 999999\r\n\r\n".encode() + b"[" * 950_000)


def all_connections(attack: Attack) -> None:
    attack.dribble(1200, b"")


def rebound_names(attack: Attack) -> None:
    attack.flood([{"texts": ["a ___"]}], host="evil.example:8000")


ATTACKS: dict[str, Callable[[Attack], None]] = {
    "nobody": nobody,
    **{name: partial(Attack.flood, bodies=bodies) for name, bodies in FLOODS.items()},
    **{
        one.__name__: one
        for one in (
            clients_that_leave,
            clients_that_never_read,
            slow_connections,
            bodies_that_never_end,
            all_connections,
            rebound_names,
        )
    },
}


@dataclass(frozen=True)
class Seen:
    """What became of the server and of its other client.

    Args:
        times_s: of the short texts that were answered with 200.
        failures: what the others got.
        attackers: what the attackers got.
        rest_mb, most_mb: memory of the server before the attack, and at most.
    """

    times_s: list[float]
    failures: dict[str, int]
    attackers: dict[str, int]
    rest_mb: float
    most_mb: float

    def line(self, name: str) -> str:
        times = sorted(1000 * taken for taken in self.times_s) or [math.nan]
        p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
        return (
            f"{name:<25}{statistics.median(times):>8.0f}{p99:>8.0f}{times[-1]:>8.0f}"
            f"{len(self.times_s):>7}{sum(self.failures.values()):>9}"
            f"{self.rest_mb:>8.0f}{self.most_mb:>8.0f}   {self.attackers} {self.failures or ''}"
        )


def memory_mb(served: Served) -> float:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def attacked(
    served: Served,
    attack: Callable[[Attack], None],
    seconds: float,
    patience_s: float = PATIENCE_S,
) -> Seen:
    """Attack a server for some seconds, beside another client."""
    wait_for(lambda: ask(served.port, json.dumps(BODY).encode(), PATIENCE_S) == "200")
    rest_mb = most_mb = memory_mb(served)
    begun = Attack(served.port, time.monotonic() + seconds, patience_s)
    attackers = threading.Thread(target=attack, args=(begun,))
    probe = subprocess.Popen(
        [sys.executable, __file__, "--probe", str(served.port), "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
    )
    attackers.start()
    while attackers.is_alive() or probe.poll() is None:
        most_mb = max(most_mb, memory_mb(served))
        attackers.join(0.05)
    said = json.loads(probe.communicate()[0])
    return Seen(said["times_s"], said["failures"], dict(begun.answers), rest_mb, most_mb)


def probe(port: int, seconds: float) -> None:
    """Send a short text every 100 ms, or as soon as the last was answered; print what came."""
    times_s: list[float] = []
    failures: Counter[str] = Counter()
    body, until_s = json.dumps(BODY).encode(), time.monotonic() + seconds
    while (began_s := time.monotonic()) < until_s:
        answer = ask(port, body, PATIENCE_S)
        taken_s = time.monotonic() - began_s
        if answer == "200":
            times_s.append(taken_s)
        else:
            failures[answer] += 1
        time.sleep(max(0.0, PAUSE_S - taken_s))
    print(json.dumps({"times_s": times_s, "failures": failures}))


def random_model(folder: Path) -> str:
    """Write a BERT of 4 layers of 312 with random weights and a vocabulary of some 30,000."""
    from fitb.bench.text import pool
    from fitb.config import Geometry
    from fitb.corpus.tokenizer import load_tokenizer, train_tokenizer
    from fitb.model.load import load_model

    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(40_000)]
    train_tokenizer([*pool(), *words, *words], 30_522, folder)
    loaded = load_model(Geometry(4, 312, 1200, 12), tokenizer=load_tokenizer(folder), length=512)
    loaded.model.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="folder; without it, a random one is made")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each attack")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--probe", type=int, metavar="PORT", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.probe:
        probe(asked.probe, asked.seconds)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with tempfile.TemporaryDirectory(prefix="fitb-attack-") as name:
        (Path(name) / "model").mkdir()
        model = asked.model or random_model(Path(name) / "model")
        print(f"{'attack':<25}{'p50 ms':>8}{'p99':>8}{'max':>8}{'texts':>7}{'failures':>9}", end="")
        print(f"{'rest MB':>8}{'most':>8}   what the attackers got")
        for attack in asked.attacks:
            flags = ("--read_s", str(READ_S))
            with serving(Path(name) / attack, model, *flags) as served:
                print(attacked(served, ATTACKS[attack], asked.seconds).line(attack), flush=True)
                assert served.stop() == 0


if __name__ == "__main__":
    main()
