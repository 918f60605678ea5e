"""Contract check: teacher, student, tokenizer and shards must fit together.

It runs before a row is read and reports all failures at once: a job that waited a day in a queue
should not fail for one reason per day.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from fitb.base.errors import ConfigError, ContractError, DataError
from fitb.corpus.tokenizer import load_tokenizer
from fitb.corpus.vocabulary import EDGE_CASES, difference
from fitb.corpus.wordpiece import bare, continues
from fitb.model.layer_map import LayerMap, resolve
from fitb.model.loaded import Loaded, some, tokenizer_fingerprint_of
from fitb.model.positions import trained_length
from fitb.shards.tokenizer import SPECIAL_TOKENS

_HEAD = "cls.predictions."
_LAYER = re.compile(r"(?:bert\.)?encoder\.layer\.(\d+)\.(.+)")


def check_contract(
    *,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Mapping[str, Any] | None,
    student: Loaded,
    teacher: Loaded | None = None,
    needs_teacher_head: bool = False,
    needs_student_head: bool = False,
    attention: bool = False,
    relation_heads: int | None = None,
    layer_maps: Mapping[str, LayerMap] = MappingProxyType({}),
    in_windows: bool = False,
) -> None:
    """Check that models, tokenizer and shards fit together.

    Args:
        tokenizer: tokenizer of the shards.
        manifest: manifest of the shards (`length`, `tokenizer.fingerprint`,
            `tokenizer.vocab_size`); None if the tokenizer is the model's own.
        student: model that is trained or used; messages call it the model if it is not trained.
        teacher: teacher of the distillation, or None.
        needs_teacher_head: whether the teacher's logits are used.
        needs_student_head: whether the student is used, so that its head must be trained already.
        attention: whether attention scores are compared, head by head.
        relation_heads: number of heads that relations are split into; None compares none.
        layer_maps: by configuration key, maps from student layers to teacher layers.
        in_windows: whether rows longer than a model's trained length are cut into windows.
    Raises: ContractError with every failure: its value, the expected value, a remedy.
    """
    asked = "model" if needs_student_head else "student"
    models = {asked: student} | ({"teacher": teacher} if teacher else {})
    failures = [*_special_tokens(tokenizer), *_round_trips(tokenizer)]
    if manifest is not None:
        failures += _manifest(tokenizer, manifest)
    for role, loaded in models.items():
        failures += _sizes(role, loaded, tokenizer)
        if manifest is not None and not in_windows:
            failures += _length(role, loaded, manifest["length"])
        failures += _vocabulary(role, loaded, tokenizer, manifest)
        needs_head = needs_teacher_head if role == "teacher" else needs_student_head
        failures += _weights(role, loaded, needs_head)
        failures += _places(role, loaded, learns=role == "student" and not needs_head)
    if teacher is not None:
        failures += _geometry(student, teacher, attention, relation_heads)
        failures += _layer_maps(student, teacher, layer_maps)
    if failures:
        raise ContractError(failures)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for name, usual in SPECIAL_TOKENS.items():
        if getattr(tokenizer, name) is None:
            yield (
                f"the tokenizer names no {name}; expected {usual} or another; add it to its"
                " tokenizer_config.json and prepare the shards again"
            )


def _manifest(tokenizer: PreTrainedTokenizerBase, manifest: Mapping[str, Any]) -> Iterator[str]:
    size = manifest["tokenizer"]["vocab_size"]
    if size != len(tokenizer):
        yield (
            f"the tokenizer beside the shards has {len(tokenizer)} entries, the manifest says"
            f" {size}; prepare the shards again"
        )
    folder, fingerprint = tokenizer.name_or_path, manifest["tokenizer"]["fingerprint"]
    beside = tokenizer_fingerprint_of(folder) if Path(folder).is_dir() else None
    if beside not in (None, fingerprint):
        yield (
            f"the tokenizer beside the shards ({folder}) has the fingerprint {beside[:12]}, the"
            f" manifest says {fingerprint[:12]}; copy the set again"
        )
    for name, expected in manifest["tokenizer"].get("special_ids", {}).items():
        found = getattr(tokenizer, f"{name}_token_id")
        if found != expected:
            yield (
                f"the tokenizer beside the shards has {name} id {found}, the manifest says"
                f" {expected}; prepare the shards again"
            )


def _sizes(role: str, loaded: Loaded, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    config = loaded.model.config
    if config.vocab_size != len(tokenizer):
        yield (
            f"the {role} ({loaded.source}) has a vocabulary of {config.vocab_size}, the tokenizer"
            f" one of {len(tokenizer)}; prepare the shards with the {role}'s own tokenizer, or"
            f" choose a {role} trained with this one"
        )
    if config.pad_token_id is not None and config.pad_token_id != tokenizer.pad_token_id:
        yield (
            f"the {role} ({loaded.source}) pads with id {config.pad_token_id}, the tokenizer with"
            f" {tokenizer.pad_token_id}; prepare the shards with the {role}'s own tokenizer"
        )


def _length(role: str, loaded: Loaded, rows: int) -> Iterator[str]:
    most, trained = loaded.model.config.max_position_embeddings, trained_length(loaded.model.config)
    if most < rows:
        yield (
            f"the {role} ({loaded.source}) has {most} positions, rows have {rows} tokens; prepare"
            f" shards of length {most} or less"
        )
    elif trained < rows:
        yield (
            f"the {role} ({loaded.source}) was trained on rows of {trained} tokens, these have"
            f" {rows}: its predictions for the rest are random; prepare shards of length {trained}"
            " or less"
        )


def _vocabulary(
    role: str,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Yield a failure unless the model's files show that its vocabulary is that of the shards."""
    if manifest is None or loaded.is_random:
        return
    of_set = loaded.shards_fingerprint
    if of_set is not None and of_set == manifest.get("fingerprint") and not loaded.added:
        return
    source, found = loaded.tokenizer_source, loaded.tokenizer_fingerprint
    if source is None:
        yield from _fingerprint(role, loaded, manifest["tokenizer"])
        return
    try:
        other = difference(load_tokenizer(source), tokenizer, loaded.added)
    except DataError as error:
        yield (
            f"it is unknown whether the {role} ({loaded.source}) has the vocabulary of the shards:"
            f" {error}; copy the tokenizer that it was trained with beside its weights"
        )
        return
    if other:
        expected = manifest["tokenizer"]["fingerprint"]
        named = "is not that of the shards"
        if found not in (None, expected):
            named = f"has the fingerprint {found[:12]}, that of the shards {expected[:12]}"
        yield (
            f"the tokenizer beside the {role} ({source}) {named}: {other}: the same text would give"
            f" other ids; prepare the shards with the {role}'s tokenizer"
        )


def _fingerprint(role: str, loaded: Loaded, entry: Mapping[str, Any]) -> Iterator[str]:
    """Compare fingerprints alone, as for a checkpoint without an export."""
    found = loaded.tokenizer_fingerprint
    if found is None:
        yield (
            f"it is unknown whether the {role} ({loaded.source}) has the vocabulary of the shards:"
            " its run has no export, and its own shards are missing; put them back, or copy the"
            " tokenizer that it was trained with into the run's export/"
        )
        return
    added = {each["token"]: each["id"] for each in entry.get("added", ())}
    as_added = loaded.added and loaded.added == added
    if found != entry["base_fingerprint" if as_added else "fingerprint"]:
        yield (
            f"the tokenizer beside the {role} ({loaded.source}) has the fingerprint {found[:12]},"
            f" that of the shards {entry['fingerprint'][:12]}: the same text would give other"
            f" ids; prepare the shards with the {role}'s tokenizer"
        )


def _weights(role: str, loaded: Loaded, needs_head: bool) -> Iterator[str]:
    head = [name for name in loaded.missing if name.startswith(_HEAD)]
    body = [name for name in loaded.missing if not name.startswith(_HEAD)]
    if body:
        yield (
            f"the checkpoint of the {role} ({loaded.source}) lacks {len(body)} weights of its"
            f" encoder ({some(body, 8)}), which would be random; use a checkpoint that holds them"
            " or correct its config.json"
        )
    if head and needs_head:
        yield (
            f"the checkpoint of the {role} ({loaded.source}) lacks a trained MLM head:"
            f" {some(head, 8)} would be random; use a checkpoint saved from BertForMaskedLM or"
            f" BertForPreTraining{', or turn off the logits term' if role == 'teacher' else ''}"
        )


def _places(role: str, loaded: Loaded, *, learns: bool) -> Iterator[str]:
    """Yield a failure for unexpected weights, except further layers of a student to be trained."""
    if loaded.unexpected and not (learns and _are_further_layers(loaded)):
        yield (
            f"the checkpoint of the {role} ({loaded.source}) has {len(loaded.unexpected)} weights"
            f" that a BERT of its config.json lacks ({some(loaded.unexpected, 8)}), so its outputs"
            " would differ; put back the config.json that was saved with them, or choose a plain"
            " BERT"
        )


def _are_further_layers(loaded: Loaded) -> bool:
    """Whether the unexpected weights are whole layers above those of the model."""
    depth = int(loaded.model.config.num_hidden_layers)
    names = [match.groups() for name in loaded.model.state_dict() if (match := _LAYER.match(name))]
    whole = {name for layer, name in names if layer == "0"}
    further: dict[int, set[str]] = {}
    for name in loaded.unexpected:
        match = _LAYER.match(name)
        if match is None:
            return False
        further.setdefault(int(match[1]), set()).add(match[2])
    as_many = sorted(further) == list(range(depth, depth + len(further)))
    return as_many and all(found == whole for found in further.values())


def _geometry(
    student: Loaded,
    teacher: Loaded,
    attention: bool,
    relation_heads: int | None,
) -> Iterator[str]:
    ours, theirs = student.model.config, teacher.model.config
    if attention and ours.num_attention_heads != theirs.num_attention_heads:
        yield (
            f"the student has {ours.num_attention_heads} attention heads, the teacher"
            f" {theirs.num_attention_heads}, and attention is compared head by head; give the"
            f" student {theirs.num_attention_heads}, or set objective.attention to 0 and"
            " objective.relation to 1, which splits heads anew"
        )
    if relation_heads and (
        ours.hidden_size % relation_heads or theirs.hidden_size % relation_heads
    ):
        yield (
            f"hidden sizes {ours.hidden_size} (student) and {theirs.hidden_size} (teacher) do not"
            f" split into {relation_heads} relation heads; set objective.relation_heads to a"
            f" divisor of {math.gcd(ours.hidden_size, theirs.hidden_size)}"
        )


def _layer_maps(
    student: Loaded, teacher: Loaded, layer_maps: Mapping[str, LayerMap]
) -> Iterator[str]:
    depths = (loaded.model.config.num_hidden_layers for loaded in (student, teacher))
    num_student, num_teacher = depths
    for key, layer_map in layer_maps.items():
        try:
            resolve(layer_map, num_student, num_teacher, key)
        except ConfigError as error:
            yield str(error)


def _round_trips(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for text in EDGE_CASES:
        problem = _round_trip_problem(tokenizer, text)
        if problem:
            yield (
                f"the tokenizer does not reproduce {text!r}: {problem}; use a WordPiece tokenizer"
                " with offsets, such as BERT's"
            )


def _round_trip_problem(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Compare each subword with the text at its offsets; return None if all are equal.

    Offsets refer to the normalised text: normalising may decompose a character (Hangul) into
    several, whose subwords would share one offset in the original text.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = normalizer.normalize_str(text) if normalizer else text
    coded, written = (
        tokenizer(form, add_special_tokens=False, verbose=False).encodings[0]
        for form in (normal, text)
    )
    if coded.ids != written.ids:
        return "normalised text gives other ids than the original text"
    previous_word, previous_end = None, 0
    for piece, (begin, end), word in zip(coded.tokens, coded.offsets, coded.word_ids, strict=True):
        inside = continues(piece) and word == previous_word
        if normal[previous_end:begin].strip():
            return f"{normal[previous_end:begin]!r} before token {piece!r} has no token"
        if piece != tokenizer.unk_token:
            spelled = bare(piece) if inside else piece
            if spelled != normal[begin:end]:
                return f"token {piece!r} stands for {normal[begin:end]!r}"
            if (word == previous_word) != inside:
                return f"token {piece!r} marks the begin of a word, its offset does not"
        previous_word, previous_end = word, end
    if normal[previous_end:].strip():
        return f"{normal[previous_end:]!r} at the end has no token"
    return None
