"""As much of a W&B server as a run needs, over http, and it misbehaves on demand.

It keeps runs as W&B does: lines of a file at their offsets, so an upload that is repeated changes
nothing; who resumes a run is told its last line and how many there are. Written down in a journal,
all of it survives a restart. From Python:

    with WandbServer() as server:
        env = server.env

or as a program, for a soak test; kill it and start it again whenever you like:

    python wandb_server.py --host 0.0.0.0 --port 8080 --out journal.jsonl
    WANDB_BASE_URL=http://HOST:8080 WANDB_API_KEY=... fitb train ...
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from http_server import Handler, HttpServer

HISTORY, EVENTS, LOG = "wandb-history.jsonl", "wandb-events.jsonl", "output.log"
SUMMARY = "wandb-summary.json"
KEY = "0123456789abcdef0123456789abcdef01234567"  # of no account
ENTITY = "team"


class Run:
    """What the server holds of one run."""

    def __init__(self) -> None:
        self.files: dict[str, dict[int, str]] = defaultdict(dict)  # name -> offset -> line
        self.config = "{}"
        self.display_name = ""
        self.exit_codes: list[int] = []

    def lines(self, name: str) -> list[str]:
        return [line for _, line in sorted(self.files[name].items())]

    def history(self) -> list[dict[str, Any]]:
        """Logged dictionaries in order; a hole between offsets is an error."""
        assert sorted(self.files[HISTORY]) == list(range(len(self.files[HISTORY])))
        return [json.loads(line) for line in self.lines(HISTORY)]

    def steps(self) -> list[int]:
        return [record["train/step"] for record in self.history()]

    def summary(self) -> dict[str, Any]:
        lines = self.lines(SUMMARY)
        return dict(json.loads(lines[-1])) if lines else {}

    def bucket(self, name: str) -> dict[str, Any]:
        config = json.loads(self.config)
        started = config.get("_wandb", {}).get("value", {}).get("t")
        history = self.lines(HISTORY)
        last_step = json.loads(history[-1]).get("_step", -1) if history else -1
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": self.display_name,
            "config": self.config,
            "summaryMetrics": json.dumps(self.summary()),
            "historyLineCount": len(history),
            "eventsLineCount": len(self.files[EVENTS]),
            "logLineCount": len(self.files[LOG]),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(self.lines(EVENTS)[-1:]),
            "wandbConfig": json.dumps({"t": started} if started else {}),
            "lastHistoryStep": last_step,
            "project": {"id": "p", "name": "fitb", "entity": {"id": "e", "name": ENTITY}},
        }


class WandbServer(HttpServer):
    """The server; no request is answered while `hold` is clear.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        journal: a file that keeps all across restarts of the program.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, journal: Path | None = None) -> None:
        self.runs: dict[str, Run] = defaultdict(Run)
        self.requests: list[str] = []  # operations and paths, as they came
        self.status: dict[str, int] = {}  # by operation, path's end, or "" for all: refuse with it
        self._journal = journal
        if journal and journal.exists():
            for line in journal.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    self._apply(json.loads(line))
        super().__init__(_Runs, host, port)

    @property
    def env(self) -> dict[str, str]:
        """What a client needs to log to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def write(self, change: dict[str, Any]) -> None:
        """Make a change to a run, in the journal first."""
        with self.lock:
            if self._journal:
                with open(self._journal, "a") as file:
                    file.write(json.dumps(change) + "\n")
            self._apply(change)

    def _apply(self, change: dict[str, Any]) -> None:
        run = self.runs[change["run"]]
        run.config = change.get("config") or run.config
        run.display_name = change.get("display_name") or run.display_name
        if change.get("exit_code") is not None:
            run.exit_codes.append(change["exit_code"])
        for name, chunk in change.get("files", {}).items():
            lines = enumerate(chunk["content"], chunk["offset"])
            run.files[name].update(lines)

    def graphql(self, operation: str, values: dict[str, Any], host: str) -> dict[str, Any]:
        name = values.get("name") or values.get("run") or ""
        if operation == "UpsertBucket":
            known = name in self.runs
            change = {"config": values.get("config"), "display_name": values.get("displayName")}
            self.write({"run": name, **change})
            bucket = self.runs[name].bucket(name)
            return {"upsertBucket": {"bucket": bucket, "inserted": not known}}
        if operation == "CreateRunFiles":
            names = values["files"]
            files = [{"name": n, "uploadUrl": f"http://{host}/upload/{n}"} for n in names]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}"}}
        bucket = self.runs[name].bucket(name) if name in self.runs else None
        if operation == "RunResumeStatus":
            entity = {"id": "e", "name": ENTITY}
            return {"model": {"id": "p", "name": "fitb", "entity": entity, "bucket": bucket}}
        return {}

    def answer(self, path: str, body: bytes, host: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request; `host` is how the client calls this server."""
        asked: dict[str, Any] = {}
        operation = path.rpartition("/")[2]
        if path == "/graphql":
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = found[1] if found else ""
        with self.lock:
            self.requests.append(operation)
        self.hold.wait()
        status = self.status.get(operation, self.status.get("", 200))
        if status != 200:
            return status, {"error": "told to refuse"}
        if path == "/graphql":
            return 200, {"data": self.graphql(operation, asked.get("variables") or {}, host)}
        if operation == "file_stream":
            sent = json.loads(body)
            change = {"files": sent.get("files", {}), "exit_code": sent.get("exitcode")}
            self.write({"run": path.split("/")[-2], **change})
        return 200, {}


class _Runs(Handler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802
        server, body = self.owner, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer = server.answer(self.path, body, self.headers["Host"])
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST  # noqa: N815


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the journal")
    flags = parser.parse_args()
    with WandbServer(flags.host, flags.port, flags.out) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
