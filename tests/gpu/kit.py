"""What a machine with a GPU and no network needs for `make gpu`: shards, and wheels.

    python tests/gpu/kit.py OUT [--python 3.12]

Without --python only the shards are made. The machine is expected to have torch, transformers and
pyarrow, and what these require.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 60_000_000
# What such a machine has, and what training does not import.
THERE = {
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface_hub", "hf_xet"),
    *("pyarrow", "numpy", "datasets", "pandas", "multiprocess", "xxhash", "aiohttp", "wandb"),
    *("llguidance", "rensa", "sentry_sdk", "gitpython"),
}


def shards(out: Path) -> None:
    """Prepare sets of docstrings with rows of 128 and of 512 tokens, below 4 MB in all."""
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig
    from fitb.model.flops import VOCABULARY

    for length in (128, 512):
        about = {"vocab_size": VOCABULARY, "max_mb": 1.5, "validation_fraction": 0.02}
        prepare(
            PrepareConfig(out=str(out / str(length)), source="docstrings", length=length, **about)
        )


def wheels(out: Path, python: str) -> None:
    """Collect wheels for a Python, without those that are there."""
    command = [sys.executable, str(ROOT / "container" / "wheelhouse.py"), "--python", python]
    command += ["--torch", "none", "--extras", ""]
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:  # of 150 MB, most of which are there
        subprocess.run([*command, "--out", scratch], check=True)
        for wheel in Path(scratch).glob("*.whl"):
            name = re.sub(r"[-_.]+", "_", wheel.name.partition("-")[0]).lower()
            if name not in THERE and not name.startswith("nvidia"):
                shutil.copy(wheel, out)
    size = sum(wheel.stat().st_size for wheel in out.glob("*.whl"))
    if size > MOST_BYTES:
        sys.exit(
            f"{out} has {size / 1e6:.0f} MB of wheels; expected at most {MOST_BYTES / 1e6:.0f}"
        )
    print(f"{len(list(out.glob('*.whl')))} wheels, {size / 1e6:.0f} MB, in {out}")


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("out", type=Path)
    words.add_argument("--python", default="")
    given = words.parse_args()
    sys.path.insert(0, str(ROOT))
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "shards" / "512" / "manifest.json").exists():
        shards(given.out / "shards")
    if given.python:
        wheels(given.out / "wheels", given.python)
