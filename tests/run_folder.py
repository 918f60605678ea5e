"""The folder of a run, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENDS = {"metrics": ".jsonl", "events": ".jsonl", "config": ".yaml", "provenance": ".json"}


def write_run(folder: Path, **files: Any) -> Path:
    """Write files by their stems: records, or text as it is; None leaves a file out."""
    (folder / "checkpoints").mkdir(parents=True)
    for stem, content in files.items():
        if content is None:
            continue
        if not isinstance(content, str):
            lines = content if ENDS[stem] == ".jsonl" else [content]
            content = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{stem}{ENDS[stem]}").write_text(content)
    return folder
