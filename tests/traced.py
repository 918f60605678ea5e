"""`python traced.py COMMAND ...` is `fitb COMMAND ...` that records which rows every step read.

Each rank of each attempt appends a line per step to RUN/rows, unbuffered: what it has written
outlives SIGKILL. Processes that are started otherwise call `record_rows` first, as a
sitecustomize does in those of the soak.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

from fitb.base.fsio import naming_full_disk, read_lines, sha256_file


def record_rows() -> None:
    """Have every training of this process record its rows."""
    from fitb.training import loop
    from fitb.training.engine import Engine

    enter, take_step = loop.open_run, Engine.train_step
    files: list[IO[bytes]] = []

    def open_run(config: Any, world: Any, device: Any) -> Any:
        run, config = enter(config, world, device)
        folder = run.path / "rows"
        folder.mkdir(exist_ok=True)
        name = f"{run.attempt:04d}-rank-{world.rank:05d}.jsonl"
        files.append(open(folder / name, "ab", buffering=0))  # noqa: SIM115 - until the end
        return run, config

    def train_step(self: Any, step: int, batch: Any, counts: Any) -> Any:
        result = take_step(self, step, batch, counts)
        line = json.dumps({"step": step + 1, "rows": batch.rows.tolist()}) + "\n"
        with naming_full_disk(Path(files[-1].name)):
            files[-1].write(line.encode())
        return result

    loop.open_run, Engine.train_step = open_run, train_step


def rows_of_steps(run_dir: Path) -> dict[int, list[int]]:
    """What each step of a run read, as recorded by the attempt whose update stands.

    A step that a later attempt did again, after a kill, counts once: the weights are those of the
    later one, which began at its `resume` event.

    Returns: step (updates done, from 1) -> row numbers in the order of the ranks.
    """
    begun = {
        event["attempt"]: event["step"]
        for event in read_lines(run_dir / "events.jsonl", "event")
        if event["event"] == "resume"
    }
    rows: dict[int, list[int]] = {}
    last = 0
    for path in sorted((run_dir / "rows").glob("*.jsonl")):  # of the ranks of attempts in turn
        attempt = int(path.name[:4])
        if attempt > last:
            last, begin = attempt, begun.get(attempt, 0)
            rows = {step: read for step, read in rows.items() if step <= begin}
        for line in read_lines(path, "step", "rows"):
            rows.setdefault(line["step"], []).extend(line["rows"])
    return rows


def newest(run_dir: Path) -> Path:
    """Folder of the newest checkpoint."""
    checkpoints = run_dir / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip()


def weights(run_dir: Path) -> dict[str, str]:
    """File -> hash of the newest checkpoint's tensors."""
    return {path.name: sha256_file(path) for path in newest(run_dir).glob("*.safetensors")}


if __name__ == "__main__":
    from fitb.cli import main

    record_rows()
    sys.exit(main(sys.argv[1:]))
