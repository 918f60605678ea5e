"""The power fails under a training: what the disk holds at a moment is mounted, and gone on with.

    python tests/benchmarks/power_cut.py FOLDER     (as root, who may mount)

`fitb train` runs on an ext4 of its own. When `latest` names the second checkpoint the file of the
filesystem is copied, which is what the disk holds, without what the kernel has in memory. On the
copy `fitb export` and the next start are tried. One JSON line tells what was found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS / "integration")]

import job  # noqa: E402 - after the path
from small import make_shards, make_teacher, mounted, quick  # noqa: E402 - after the path

from fitb.cluster.local import LocalRun  # noqa: E402 - after the path

SECOND = "step-0000016"


def zeros(folder: Path) -> dict[str, str]:
    """Size of each file, and whether it holds nothing but zeros."""
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}
    return {name: f"{len(d)}{'' if d.strip(bytes(1)) else ' zero'}" for name, d in files.items()}


def cut_at_second_save(flags: list[str], device: Path, where: Path, image: Path) -> None:
    """Train, and copy the device at the moment of the second save."""
    with mounted(where, "-o", "loop", device):
        run = where / "run"
        latest = run / "checkpoints" / "latest"
        with LocalRun(job.command(flags, run), 1) as ranks:
            while not (latest.exists() and latest.read_text().strip() == SECOND):
                assert ranks.running()
                time.sleep(0.005)
            shutil.copyfile(device, image)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards = make_shards(folder)
    flags = quick(shards, make_teacher(folder, shards), checkpoint_every=8, eval_every=8)
    flags += ["--track.wandb", "disabled"]
    device, image = folder / "device", folder / "image"
    with open(device, "wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    cut_at_second_save(flags, device, folder / "before", image)
    found: dict[str, Any] = {}
    with mounted(folder / "after", "-o", "loop", image) as after:
        run = after / "run"
        found["export"] = zeros(run / "export")
        done = job.fitb("export", "--source", str(run), "--out", str(folder / "exported"))
        found["fitb export"] = [done.returncode, done.stderr.strip()[-300:]]
        found["next start"] = job.run(flags, run, 1)
        found["made again"] = job.events(run, "exported")
        found["export then"] = zeros(run / "export")
        assert job.run(flags, folder / "straight", 1) == 0
        found["unlike"] = job.differing(folder / "straight", run)
        found["export unlike"] = [
            name
            for name in ("model.safetensors", "config.json", "tokenizer.json")
            if (run / "export" / name).read_bytes()
            != (folder / "straight" / "export" / name).read_bytes()
        ]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
