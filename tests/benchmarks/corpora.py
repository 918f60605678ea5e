"""Fixed corpora for experiments: texts that no later change of a dependency touches.

    python tests/benchmarks/corpora.py FOLDER [docstrings|wordnet]

docstrings: English docstrings of the wheels of corpus.txt, pinned by version and sha256 and never
    installed or imported; the same under Python 3.10 to 3.13.
wordnet: glosses and examples of WordNet 3.0 as Debian ships it (package wordnet-base), because its
    text has not changed since 2006 and is plain English by lexicographers.

Each is written as FOLDER/NAME.jsonl, one document a line, and its sha256 is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fitb.corpus.docstrings import docstrings, is_english, python_files

WHEELS = Path(__file__).with_name("corpus.txt")
_MEGABYTES = 14.0  # of docstrings, sampled by a hash of their text
SHA256 = {
    "docstrings": "e806d63d6e4716634d341a69c41566d127fca1af0d5e63cab3c5a9af98edd573",
    "wordnet": "d816dd6818d0796eb3866501b3f151dc3dea8df0511f5c4c1ec5a30c918a7503",
}


def corpus(folder: Path, name: str) -> Path:
    """Write a corpus, unless it is there already, and return its path.

    Raises: SystemExit if its text is not the known one.
    """
    path = folder / f"{name}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"docstrings": _docstrings, "wordnet": _glosses}[name]()
        written = "".join(f"{json.dumps({'text': text})}\n" for text in texts)
        path.with_suffix(".part").write_text(written)
        path.with_suffix(".part").rename(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[name]:
        sys.exit(f"{path} has sha256 {found}; expected {SHA256[name]}; remove it and start again")
    return path


def _docstrings() -> Iterable[str]:
    """Return different docstrings in the order of a hash of their text, up to a total size."""
    with tempfile.TemporaryDirectory(prefix="fitb-corpus-") as name:
        folder = Path(name)
        fixed = ("--no-deps", "--only-binary=:all:", "--python-version=3.10", "--platform=any")
        pure = ("--implementation=py", "--abi=none", "--require-hashes", "--requirement", WHEELS)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder)
        subprocess.run([*pip, *fixed, *pure], check=True)
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder / "code")
        files = [folder / "code" / file.name for file in python_files([str(folder / "code")])]
        texts = {text for file in files for text in docstrings(file) if is_english(text)}
    return _sampled(texts, _MEGABYTES * 1e6)


def _sampled(texts: Iterable[str], num_bytes: float) -> Iterator[str]:
    """Yield texts in the order of their sha256 until they have so many bytes."""
    total = 0
    for _, text in sorted((_sha256(text), text) for text in texts):
        if total >= num_bytes:
            return
        total += len(_utf8(text))
        yield text


def _glosses() -> Iterator[str]:
    """Yield what follows the bar in WordNet's data files, once each."""
    with tempfile.TemporaryDirectory(prefix="fitb-corpus-") as name:
        subprocess.run(["apt-get", "download", "-q", "wordnet-base"], cwd=name, check=True)
        (package,) = Path(name).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, name], check=True)
        lines = [
            line
            for part in ("noun", "verb", "adj", "adv")
            for line in (Path(name) / f"usr/share/wordnet/data.{part}").read_text().splitlines()
        ]
    glosses = (re.split(r" \| ", line, maxsplit=1)[1].strip() for line in lines if " | " in line)
    yield from dict.fromkeys(glosses)


def _sha256(text: str) -> str:
    return hashlib.sha256(_utf8(text)).hexdigest()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    print(corpus(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "docstrings"))
