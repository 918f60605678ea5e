"""Which rows every step read, written down as it happens: the record that an audit counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fitb.config import Config
from fitb.data.batch import Batch
from fitb.fsio import naming_full_disk, read_lines
from fitb.rundir.writer import RunDir
from fitb.world import World


class RowTrace:
    """The record of one rank of one attempt: a line per step; nothing where it is not wanted."""

    def __init__(self, run: RunDir, config: Config, world: World) -> None:
        self._file: IO[bytes] | None = None
        if config.track.rows:
            folder = run.path / "rows"
            folder.mkdir(exist_ok=True)
            name = f"{run.attempt:04d}-rank-{world.rank:05d}.jsonl"
            self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 - until the end

    def read(self, step: int, batch: Batch) -> None:
        """Note the rows of a step that was done; survives the kill of this process."""
        if self._file is None or batch.rows is None:
            return
        line = json.dumps({"step": step, "rows": batch.rows.tolist()}) + "\n"
        with naming_full_disk(Path(self._file.name)):
            self._file.write(line.encode())


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
