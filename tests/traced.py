"""`python traced.py COMMAND ...` is `fitb COMMAND ...` that records which rows every step read.

Each rank of each attempt appends a line per step to RUN/rows, unbuffered: what it has written
outlives SIGKILL. Processes that are started otherwise call `record_rows` first, as a
sitecustomize does in those of the soak.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fitb.base.fsio import naming_full_disk, read_lines, sha256_file


def record_rows() -> None:
    """Have every training of this process record its rows."""
    from fitb.training import loop
    from fitb.training.engine import Engine

    enter, take_step = loop.open_run, Engine.train_step
    files: list[IO[bytes]] = []

    def open_run(config: Any, world: Any) -> Any:
        run, config = enter(config, world)
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
    for attempt, records in _records(run_dir / "rows"):
        for step in [step for step in rows if step > begun.get(attempt, 0)]:
            del rows[step]
        for step, part in records:
            rows.setdefault(step, []).extend(part)
    return rows


def weights(run_dir: Path) -> dict[str, str]:
    """File -> hash of the newest checkpoint's tensors."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _records(folder: Path) -> Iterator[tuple[int, list[tuple[int, list[int]]]]]:
    """Attempts in turn, each with the records of its ranks in turn."""
    attempts: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        attempts.setdefault(int(path.name[:4]), []).append(path)
    for attempt, paths in sorted(attempts.items()):
        records = [
            (line["step"], line["rows"])
            for path in paths
            for line in read_lines(path, "step", "rows")
        ]
        yield attempt, records


if __name__ == "__main__":
    from fitb.cli import main

    record_rows()
    sys.exit(main(sys.argv[1:]))
