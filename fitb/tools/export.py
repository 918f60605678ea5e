"""`fitb export`: write a trained model as a Hugging Face folder with a model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitb.base import fsio
from fitb.base.errors import ConfigError, DataError, FitbError
from fitb.base.modes import denied
from fitb.config import Config
from fitb.config.parser import parse
from fitb.infer.card import (
    Card,
    Comparison,
    Metric,
    code_facts,
    data_facts,
    metrics_of_evaluation,
    model_card,
    model_facts,
    training_facts,
)
from fitb.model.exported import damage, step_of
from fitb.rundir import names
from fitb.rundir.checkpoints import best_checkpoint_of, checkpoint_of
from fitb.rundir.metrics import best_validation
from fitb.rundir.names import STEP
from fitb.rundir.provenance import describe_code, newest_code

if TYPE_CHECKING:
    from fitb.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)
_COSTS = ("loss", "top1", "top5")


@dataclass(frozen=True)
class ExportConfig:
    """Write a model as a Hugging Face folder, and as ONNX.

    Args:
        source: Hugging Face folder or hub name; a run (its export, or else its newest checkpoint);
            or a checkpoint of a run.
        out: folder to write.
        onnx: also write model.onnx.
        int8: also write model.onnx and model-int8.onnx, whose encoder has int8 matmuls.
        metrics: file with the output of `fitb evaluate --json` for this model, for the card.
        shards: folder or URL of shards, on whose validation rows to measure the cost of int8.
        rows: number of these rows, spread evenly; 0 means all.
        json: print JSON.
    """

    source: str
    out: str
    onnx: bool = False
    int8: bool = False
    metrics: str | None = None
    shards: str | None = None
    rows: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ConfigError(f"rows={self.rows}; expected 0 (all) or more")
        if self.shards is not None and not self.int8:
            raise ConfigError(
                f"--shards {self.shards} measures the cost of int8; add --int8, or give the JSON of"
                " `fitb evaluate` to --metrics"
            )


@dataclass(frozen=True)
class Origin:
    """Origin of a model.

    Args:
        model: source for load_model.
        tokenizer: source for load_tokenizer.
        run: run that trained it; None if unknown.
        step: step of the weights in that run; None if unknown.
    """

    model: str
    tokenizer: str
    run: Path | None = None
    step: int | None = None


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the folder atomically.

    Returns: JSON-able: the folder, its files and their sizes, differences measured.
    Raises:
        ConfigError: the folder exists.
        DataError: there is no such model, or a given file is invalid.
        ContractError: the model has no trained MLM head or does not fit its tokenizer.
        SystemFault: onnx is not installed, or the ONNX model differs from PyTorch's.
    """
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.model.contract import check_contract
    from fitb.model.load import load_model, num_parameters, quiet
    from fitb.model.positions import trained_length

    out = Path(config.out)
    _refuse_existing(out)
    if config.onnx or config.int8:
        from fitb.infer.onnx import require_extra

        require_extra()
    origin = find(config.source)
    tokenizer = load_tokenizer(origin.tokenizer)
    loaded = load_model(origin.model, tokenizer=tokenizer)
    check_contract(tokenizer=tokenizer, manifest=None, student=loaded, needs_student_head=True)
    card = Card(
        name=out.name,
        mask_token=str(tokenizer.mask_token),
        model=model_facts(loaded.model.config, num_parameters(loaded.model)),
        **_history(origin, config.metrics),
    )
    try:
        with fsio.folder_written_whole(out, replace=False) as folder, quiet():
            loaded.model.save_pretrained(folder)
            tokenizer.model_max_length = trained_length(loaded.model.config)
            tokenizer.save_pretrained(folder)
            if config.onnx or config.int8:
                card = _with_onnx(card, config, loaded.model, tokenizer, folder)
            (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    except FileExistsError:
        _refuse_existing(out)  # another process has made it meanwhile
        raise
    return {
        "folder": str(out),
        "source": config.source,
        "step": origin.step,
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "onnx_largest_difference": card.onnx,
        "int8_cost": [asdict(each) for each in card.cost],
    }


def render(result: dict[str, Any]) -> str:
    """Render a result of `export` for people."""
    lines = [f"{result['folder']}:"]
    lines += [f"  {size:13,}  {name}" for name, size in result["files"].items()]
    difference = result["onnx_largest_difference"]
    if difference is not None:
        lines.append(f"model.onnx: logits within {difference:.1e} of PyTorch's")
    cost = "int8 - fp32: {metric} {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    return "\n".join([*lines, *(cost.format(**each) for each in result["int8_cost"])])


def find(source: str) -> Origin:
    """Resolve a source; for a run whose export is damaged to its best checkpoint.

    Raises: DataError if a run holds no model yet, or a checkpoint's tokenizer cannot be found.
    """
    path = Path(source)
    if why := denied(path):
        raise DataError(f"{source} cannot be read: {why}")
    run = path.parent if path.name == names.EXPORT and names.is_run(path.parent) else path
    exported = run / names.EXPORT
    if names.is_run(run) and exported.is_dir():
        reason = damage(exported)
        if reason is None:
            return Origin(str(exported), str(exported), run, _best_step(run))
        instead = best_checkpoint_of(run)
        if instead is None:
            raise DataError(
                f"the export of {run} is damaged ({reason}), and there is no checkpoint; start the"
                " run again, which rewrites it, or choose another run"
            )
        logger.warning("the export of %s is damaged (%s); using %s instead", run, reason, instead)
        path = instead
    checkpoint = checkpoint_of(path)
    if checkpoint is not None:
        run = checkpoint.parent.parent
        try:
            manifest = fsio.read_json(checkpoint / names.MANIFEST, "step")
            step = int(manifest["step"])
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{checkpoint / names.MANIFEST} cannot be read: {error}; choose another checkpoint"
            ) from error
        return Origin(str(checkpoint), _tokenizer_of(run, manifest.get("fingerprint")), run, step)
    if names.is_run(path):
        raise DataError(
            f"{source} is a run that has neither an export nor a checkpoint yet; let it train, or"
            " choose another"
        )
    return Origin(source, source)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out} already exists; choose a new folder, or remove that one")


def _config_of(run: Path) -> Config:
    return parse(Config, "fitb export", ["--config", str(run / names.CONFIG)])


def _tokenizer_of(run: Path, trained_on: str | None) -> str:
    """Return the tokenizer of a run: that of its export, else that of the shards it trained on."""
    if (run / names.EXPORT).is_dir() and damage(run / names.EXPORT) is None:
        return str(run / names.EXPORT)
    shards = _config_of(run).data.shards
    try:
        found = _open(shards)
    except FitbError as error:
        raise DataError(
            f"the tokenizer of {run} cannot be found: no export is intact, and its shards cannot"
            f" be opened: {error}"
        ) from error
    if found.fingerprint != trained_on:
        raise DataError(
            f"the tokenizer of {run} cannot be found: it has no intact export, and {shards} holds"
            f" other shards ({found.fingerprint[:12]}) than those that it was trained on"
            f" ({str(trained_on)[:12]}); put these back"
        )
    return str(found.tokenizer_folder)


def _open(shards: str, split: str = "train") -> ShardSet:
    from fitb.shards.shard_set import ShardSet

    return ShardSet.open(shards, split)


def _best_step(run: Path) -> int | None:
    """Return the step of a run's export, else of its lowest validation loss, else its last step.

    None if lines of metrics.jsonl are damaged, because the right one may be among them.
    """
    step = step_of(run / names.EXPORT)
    if step is not None:
        return step
    try:
        records = list(fsio.read_lines(run / names.METRICS, STEP))
    except fsio.DamagedFile as error:
        logger.warning("the step of %s is unknown: %s", run / names.EXPORT, error)
        return None
    best = best_validation(records)
    return best[1] if best else max((int(record[STEP]) for record in records), default=None)


def _history(origin: Origin, metrics_file: str | None) -> dict[str, Any]:
    """Return the parts of the card about the training of a model."""
    found: dict[str, Any] = {}
    code = None
    if origin.run is not None:
        config = _config_of(origin.run)
        found["training"] = training_facts(config, origin.step)
        found["data"] = _data(origin.run, config)
        if validated := _validation(origin.run, origin.step):
            found["metrics"] = validated
            found["measured_on"] = "validation rows, during training"
        code = newest_code(origin.run)
    found["code"] = code_facts(code or describe_code())
    if metrics_file is not None:
        try:
            result = fsio.read_json(Path(metrics_file))
        except (OSError, ValueError) as error:
            raise DataError(
                f"--metrics {metrics_file} cannot be read: {error}; give a file with the output of"
                " `fitb evaluate --json`"
            ) from error
        found["metrics"], found["measured_on"] = metrics_of_evaluation(result, metrics_file)
    return found


def _data(run: Path, config: Config) -> Mapping[str, Any]:
    """Describe the shards of a run; with statistics only if the same shards are still there."""
    trained_on = None
    if checkpoint := checkpoint_of(run):
        trained_on = fsio.read_json(checkpoint / names.MANIFEST, "fingerprint")["fingerprint"]
    try:
        manifest = _open(config.data.shards).manifest
    except FitbError:
        manifest = {}
    if manifest and trained_on in (None, manifest["fingerprint"]):
        return data_facts(manifest["fingerprint"], manifest)
    return data_facts(trained_on, None) if trained_on else {}


def _validation(run: Path, step: int | None) -> list[Metric]:
    for record in fsio.read_records(run / names.METRICS):
        if record.get(STEP) == step and names.BEST_BY in record:
            return [
                Metric(name.removeprefix("val/"), float(value))
                for name, value in record.items()
                if name.startswith("val/") and isinstance(value, (int, float))
            ]
    return []


def _with_onnx(card: Card, config: ExportConfig, model: Any, tokenizer: Any, folder: Path) -> Card:
    from fitb.infer.onnx import FP32, INT8, OnnxScorer, export_onnx, quantise
    from fitb.model.positions import trained_length

    card = replace(card, onnx=export_onnx(model, tokenizer, folder))
    if not config.int8:
        return card
    quantise(folder)
    scorers = {
        name: OnnxScorer(folder / name, tokenizer, trained_length(model.config))
        for name in (FP32, INT8)
    }
    if config.shards is None:
        return replace(card, int8=True)
    shards = _open(config.shards, "validation")
    if shards.manifest["tokenizer"]["fingerprint"] != scorers[FP32].tokenizer_fingerprint:
        raise DataError(
            f"--shards {config.shards} were prepared with another tokenizer than this model's;"
            " prepare shards with this one, or leave --shards out"
        )
    from fitb.evaluation.count import choose_rows

    rows = choose_rows(shards.num_rows, config.rows)
    cost = _cost(scorers[FP32], scorers[INT8], shards, rows)
    on = f"{len(rows):,} validation rows of shards {shards.fingerprint[:12]}"
    return replace(card, int8=True, cost=cost, cost_on=on)


def _cost(fp32: Any, int8: Any, shards: ShardSet, rows: Any) -> list[Comparison]:
    """Return the cost of int8 in each metric, with its paired interval."""
    from fitb.config import MaskConfig
    from fitb.data.masking import Vocabulary
    from fitb.evaluation.count import count
    from fitb.evaluation.metrics import differences
    from fitb.evaluation.score import Onnx

    settings: Any = {"vocabulary": Vocabulary.of(fp32.tokenizer), "mask": MaskConfig()}
    found = differences(*(count(Onnx(each), shards, rows, **settings) for each in (int8, fp32)))[0]
    return [
        Comparison(metric, cost.second, cost.first, cost.value, cost.low, cost.high)
        for metric in _COSTS
        if (cost := found[metric])
    ]
