"""Settings of `fitb report`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fitb.base.errors import ConfigError


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run, or about several side by side.

    Args:
        runs: folders of the runs; may stand first without their flag.
        out: page to write; null for report.html in the folder of the first run.
        png: folder for every chart as a PNG of 300 dpi; null for none.
        evaluations: JSON files of `fitb evaluate` or `fitb compare`, or folders of such files, in
            addition to RUN/evaluation.
        blanks: number of best and of worst blanks to show per run; 0 for none, without loading a
            model.
        shards: folder of shards to take them from; null for that of each run's configuration.
        blank_rows: validation rows to fill to find them, spread evenly; 0 means all.
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
                raise ConfigError(f"{name}={getattr(self, name)}; expected 0 or more")
