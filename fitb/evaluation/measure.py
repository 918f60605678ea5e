"""Load models and shard sets, check the contract, and count correct predictions on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fitb.base.errors import ContractError
from fitb.base.fsio import sha256_json
from fitb.base.redact import redacted
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.evaluation.categories import GROUPS
from fitb.evaluation.count import choose_rows, masked_batch
from fitb.evaluation.data_parallel import Ranks
from fitb.evaluation.evaluate_config import (
    CompareConfig,
    EvaluateConfig,
    masks_of,
)
from fitb.evaluation.row_counts import COLUMNS, JUDGED, PLAIN, RowCounts, count_rows, piece_classes
from fitb.evaluation.score import Predictor, score
from fitb.evaluation.words import Categoriser
from fitb.model.added_tokens import extended
from fitb.model.contract import check_contract
from fitb.model.load import load_model, num_parameters
from fitb.model.loaded import Loaded
from fitb.model.positions import KEY, trained_length
from fitb.model.rank_agreement import digest_of_model, digest_of_tokenizer, load_alike
from fitb.shards.shard_set import ShardSet


@dataclass(frozen=True)
class EvaluationSet:
    """A named set of rows.

    Args:
        name: name of the set.
        where: folder or URL of the shards.
        shards: the split.
        tokenizer: tokenizer of the shards.
        vocabulary: vocabulary of the tokenizer, for masking.
    """

    name: str
    where: str
    shards: ShardSet
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary

    @classmethod
    def open(cls, name: str, where: str, split: str) -> EvaluationSet:
        """Open a split of a folder or URL; see ShardSet.open for its errors."""
        shards = ShardSet.open(where, split)
        tokenizer = load_tokenizer(shards.tokenizer_folder)
        return cls(name, where, shards, tokenizer, Vocabulary.of(tokenizer))


@dataclass(frozen=True)
class Measured:
    """Counts of all models on a set; empty on ranks other than 0.

    Args:
        counts: counts of each model, one per mask; the first by category, the others over all
            words.
        about: description of the set for the JSON.
        tokens_per_s: tokens per second of each model, over all ranks.
    """

    counts: dict[str, list[RowCounts]]
    about: dict[str, Any]
    tokens_per_s: dict[str, float]


def load(
    config: EvaluateConfig | CompareConfig, ranks: Ranks
) -> tuple[list[EvaluationSet], dict[str, Loaded]]:
    """Open the sets of a configuration and load its models to this rank's device, on every rank.

    Raises: see ShardSet.open and `load_models`; SystemFault on every rank if the ranks did not read
        the same bytes.
    """

    def read() -> tuple[list[EvaluationSet], dict[str, Loaded]]:
        sets = [
            EvaluationSet.open(name, where, config.split)
            for name, where in config.named_sets().items()
        ]
        return sets, load_models(config.sources(), sets, config.seed)

    def digests(found: tuple[list[EvaluationSet], dict[str, Loaded]]) -> dict[str, str]:
        held = {}
        for each in found[0]:
            held[f"manifest of {each.shards.name}"] = sha256_json(each.shards.manifest)
            held[f"tokenizer of {each.shards.name}"] = digest_of_tokenizer(each.tokenizer)
        for role, loaded in found[1].items():
            held[f"{role} {loaded.source}"] = digest_of_model(loaded.model, loaded.model.config)
        return held

    sets, loaded = load_alike(read, digests, ranks.world)
    for each in loaded.values():
        torch.nn.Module.to(each.model, device_of(ranks))
    return sets, loaded


def load_models(
    sources: Mapping[str, str], sets: list[EvaluationSet], seed: int
) -> dict[str, Loaded]:
    """Load models by role, each extended by the added tokens of the sets.

    Args:
        sources: folder or hub name of each model by role.
        sets: sets that the models must match.
        seed: seed of weights that are drawn at random.
    Raises: ContractError with all broken clauses of all models and sets.
    """
    loaded, failures = {}, []
    for role, source in sources.items():
        model = load_model(
            source, tokenizer=sets[0].tokenizer, length=sets[0].shards.length, seed=seed
        )
        for each in sets:
            model = extended(model, each.shards.manifest["tokenizer"])
            try:
                check_contract(
                    tokenizer=each.tokenizer,
                    manifest=each.shards.manifest,
                    student=model,
                    needs_student_head=True,
                    in_windows=True,
                )
            except ContractError as error:
                failures += [failure for failure in error.failures if failure not in failures]
        loaded[role] = model
    if failures:
        raise ContractError(failures)
    return loaded


def measure(
    config: EvaluateConfig | CompareConfig,
    where: EvaluationSet,
    predictors: Mapping[str, Predictor],
    ranks: Ranks,
) -> Measured:
    """Count every model's correct predictions on a set.

    Batches do not depend on the number of ranks, each is scored by one rank, and rank 0 joins them
    in order, so the result is the same for any number of ranks.

    Args:
        config: rows, masks and batch size.
        where: the set.
        predictors: models by role, in eval mode; the others are compared with `teacher`.
        ranks: processes that share the work.
    """
    rows = choose_rows(where.shards.num_rows, config.rows)
    batches = [rows[begin : begin + config.batch] for begin in range(0, len(rows), config.batch)]
    # Every rank reads the texts of all rows, so that categories do not depend on its share.
    categoriser = Categoriser.of(
        where.shards, rows, where.vocabulary, where.tokenizer, originals=config.originals
    )
    classes = piece_classes(categoriser.pieces)
    teacher = "teacher" if "teacher" in predictors else None
    seconds: dict[str, float] = {}
    counts: dict[str, list[RowCounts]] = {name: [] for name in predictors}
    version = mask_version_of(config)
    for number in range(config.masks):
        found: dict[int, dict[str, RowCounts]] = {}
        for i in ranks.share(len(batches)):
            batch, slots = masked_batch(
                where.shards,
                batches[i],
                where.vocabulary,
                config.mask,
                config.seed + number,
                None if number else categoriser,
                version,
            )
            with torch.no_grad():
                scores = score(predictors, batch, teacher=teacher, seconds=seconds)
            found[i] = {name: count_rows(slots, each, classes) for name, each in scores.items()}
        gathered = ranks.gathered(found).values()
        nothing = RowCounts.nothing(
            len(COLUMNS if teacher else JUDGED), 1 if number else len(GROUPS)
        )
        for name, parts in counts.items():
            parts.append(RowCounts.joined([nothing, *(each[name] for each in gathered)]))
    times = ranks.gathered({ranks.world.rank: seconds}).values()
    if not ranks.world.is_main:
        return Measured({}, {}, {})
    tokens = len(rows) * where.shards.length * config.masks * ranks.world.size
    speed = {
        name: tokens / max(1e-9, sum(each.get(name, 0.0) for each in times)) for name in predictors
    }
    return Measured(counts, _about(where, len(rows), counts, categoriser), speed)


def _about(
    where: EvaluationSet,
    num_rows: int,
    counts: dict[str, list[RowCounts]],
    categoriser: Categoriser,
) -> dict[str, Any]:
    """Describe the set for the JSON; masked positions are the same for every model."""
    first = next(iter(counts.values()))[0]
    totals = first.totals()
    slots, words = totals[:, PLAIN.index("num_slots")], totals[:, PLAIN.index("num_words")]
    found, wanted = categoriser.found
    return {
        "shards": redacted(where.where),
        "fingerprint": where.shards.fingerprint,
        "split": where.shards.split,
        "length": where.shards.length,
        "num_rows": num_rows,
        "num_documents": len(np.unique(first.documents)),
        "num_slots": int(slots[0]),
        "num_words": int(words[0]),
        "categories": {
            name: {"num_slots": int(slots[g]), "num_words": int(words[g])}
            for g, name in enumerate(GROUPS)
            if g and name not in categoriser.missing
        },
        "not_told": dict(categoriser.missing),
        "documents_read_again": {"found": found, "wanted": wanted},
    }


def mask_version_of(config: EvaluateConfig | CompareConfig) -> int:
    """Return the version of the masks that a configuration asks for."""
    return config.mask_version or masks_of(next(iter(config.sources().values())))


def device_of(ranks: Ranks) -> torch.device:
    """Return the device of this rank."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.world.local_rank % torch.cuda.device_count())


def models_and_settings(
    config: EvaluateConfig | CompareConfig, loaded: Mapping[str, Loaded]
) -> dict[str, Any]:
    """Return the models and settings that a result depends on, JSON-serialisable."""
    return {
        "models": {
            role: {
                "source": each.source,
                "num_parameters": num_parameters(each.model),
                KEY: trained_length(each.model.config),
            }
            for role, each in loaded.items()
        },
        "mask": asdict(config.mask),
        "mask_version": mask_version_of(config),
        **{
            name: getattr(config, name)
            for name in ("mask_version", "seed", "masks", "resamples", "batch")
        },
    }
