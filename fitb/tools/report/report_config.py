"""Settings of `fitb report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fitb.base.errors import ConfigError


@dataclass(frozen=True)
class ReportConfig:
    """Write one page about a run, or about several side by side.

    Args:
        runs: their folders; may stand first without their flag.
        out: page to write; null is report.html in the folder of the first run.
        png: folder that gets every chart as a PNG of 300 dpi; null writes none.
        evaluations: further files that `fitb evaluate` or `fitb compare` wrote as JSON, or folders
            of such; those in RUN/evaluation are always read.
        blanks: of the best and of the worst blanks of each run, how many to show; 0 shows none, and
            then no model is loaded.
        shards: folder of the shards that they are taken from; null is what each run's configuration
            names.
        blank_rows: validation rows that are filled to find them, spread evenly; 0 means all.
        json: print one JSON object.
    """

    runs: list[str] = field(default_factory=list)
    out: str | None = None
    png: str | None = None
    evaluations: list[str] = field(default_factory=list)
    blanks: int = 5
    shards: str | None = None
    blank_rows: int = 256
    json: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs=[]; name at least one folder of a run: fitb report RUN")
        for name in ("blanks", "blank_rows"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}; at least 0")

    def page(self) -> Path:
        """Return where the page goes."""
        return Path(self.out) if self.out else Path(self.runs[0]) / "report.html"
