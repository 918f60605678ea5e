"""The contract of models: teacher, student, tokenizer and shards fit together, or all is refused.

Checked before a row is read, and reported all at once: a job that waited a day in a queue should
not learn of its mistakes one day at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from fitb.corpus.tokenizer import SPECIAL_TOKENS
from fitb.errors import ContractError
from fitb.model.load import Loaded
from fitb.model.positions import trained_length

_HEAD = "cls.predictions."
_PREFIX = "##"
EDGE_CASES = (
    "See https://example.org/a_b/c-d?x=1&y=%20#top or mail first.last@example.org.",
    "os.path.join(self.__dict__, 'fooBar') != snake_case_2[i] # ##done",
    "state-of-the-art, mother-in-law's rock-'n'-roll \u2013 well \u2014 non\u2011breaking",
    "\u6211\u4eec\u5728\u5317\u4eac, \u6771\u4eac\u3068\u304b\u306a, \ud55c\uad6d\uc5b4 text",
    "Caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul Stra\u00dfe \ufb01n",
    "ok \U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ee\U0001f1f9 \u2764\ufe0f!",
    "tab\there\u00a0and\u200bthere, soft\u00adhyphen, 3.14159e-10, $1,000.50, \u20ac5",
)


def check_contract(
    *,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Mapping[str, Any] | None,
    student: Loaded,
    teacher: Loaded | None = None,
    needs_teacher_head: bool = False,
    needs_student_head: bool = False,
    attention: bool = False,
    layer_map: Literal["uniform"] | Sequence[int] | None = None,
    in_windows: bool = False,
) -> None:
    """Check that everything fits together.

    Args:
        tokenizer: that of the shards.
        manifest: of the shards (`length`, `tokenizer.fingerprint`, `tokenizer.vocab_size`); None
            where there are none.
        student: trained, evaluated or asked.
        teacher: None where there is none.
        needs_teacher_head: its logits are used.
        needs_student_head: its logits are used and its checkpoint must have trained them.
        attention: attention scores are compared, head by head.
        layer_map: teacher layer for each student layer; None where no layers are compared.
        in_windows: rows longer than a model was trained at are cut.
    Raises: ContractError with every failure, each with its value, what was expected, a remedy.
    """
    models = {"student": student} | ({"teacher": teacher} if teacher else {})
    failures = [*_special_tokens(tokenizer), *_round_trips(tokenizer)]
    if manifest is not None:
        failures += _manifest(tokenizer, manifest)
    for role, loaded in models.items():
        failures += _sizes(role, loaded, tokenizer)
        if manifest is not None and not in_windows:
            failures += _length(role, loaded, manifest["length"])
        failures += _fingerprints(role, loaded, manifest)
        needs_head = needs_teacher_head if role == "teacher" else needs_student_head
        failures += _weights(role, loaded, needs_head)
    if teacher is not None:
        failures += _geometry(student, teacher, attention, layer_map)
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
            f" {rows}: what it says of the others is chance; prepare shards of length {trained} or"
            " less"
        )


def _fingerprints(role: str, loaded: Loaded, manifest: Mapping[str, Any] | None) -> Iterator[str]:
    if manifest is None or loaded.tokenizer_fingerprint is None:
        return
    expected = manifest["tokenizer"]["fingerprint"]
    if loaded.tokenizer_fingerprint != expected:
        yield (
            f"the tokenizer saved beside the {role} ({loaded.source}) has the fingerprint"
            f" {loaded.tokenizer_fingerprint[:12]}, that of the shards {expected[:12]}: the same"
            f" text would be other ids; prepare the shards with the {role}'s tokenizer"
        )


def _weights(role: str, loaded: Loaded, needs_head: bool) -> Iterator[str]:
    head = [name for name in loaded.missing if name.startswith(_HEAD)]
    body = [name for name in loaded.missing if not name.startswith(_HEAD)]
    if body:
        yield (
            f"the checkpoint of the {role} ({loaded.source}) lacks {len(body)} weights of its"
            f" encoder ({_some(body)}), which would be random; use a checkpoint that holds them"
            " or correct its config.json"
        )
    if head and needs_head:
        yield (
            f"the checkpoint of the {role} ({loaded.source}) lacks a trained MLM head:"
            f" {_some(head)} would be random; use a checkpoint saved from BertForMaskedLM or"
            " BertForPreTraining, or turn off the terms that need its logits"
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _geometry(
    student: Loaded,
    teacher: Loaded,
    attention: bool,
    layer_map: Literal["uniform"] | Sequence[int] | None,
) -> Iterator[str]:
    ours, theirs = student.model.config, teacher.model.config
    if attention and ours.num_attention_heads != theirs.num_attention_heads:
        yield (
            f"the student has {ours.num_attention_heads} attention heads, the teacher"
            f" {theirs.num_attention_heads}, and attention is compared head by head; give the"
            f" student {theirs.num_attention_heads} or set objective.attention to 0"
        )
    deep, shallow = int(theirs.num_hidden_layers), int(ours.num_hidden_layers)
    if layer_map is None:
        return
    if layer_map == "uniform":
        if shallow > deep:
            yield (
                f"objective.layer_map=uniform needs a teacher at least as deep as the student,"
                f" not {deep} layers under {shallow}; give the map as a list"
            )
    elif len(layer_map) != shallow or not all(1 <= int(layer) <= deep for layer in layer_map):
        yield (
            f"objective.layer_map={list(layer_map)}; expected {shallow} teacher layers, one for"
            f" each of the student's, each from 1 to {deep}; correct the list or use uniform"
        )


def _round_trips(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for text in EDGE_CASES:
        problem = _round_trip_problem(tokenizer, text)
        if problem:
            yield (
                f"the tokenizer does not give back {text!r}: {problem}; use a WordPiece tokenizer"
                " with offsets, such as BERT's"
            )


def _round_trip_problem(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Compare each piece with the text at its offsets; None where all is well.

    The text is normalised first, and offsets are into that: normalising may decompose a
    character into several (Hangul), whose pieces would share one place in the text as written.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = normalizer.normalize_str(text) if normalizer else text
    coded, written = (
        tokenizer(form, add_special_tokens=False, verbose=False).encodings[0]
        for form in (normal, text)
    )
    if coded.ids != written.ids:
        return "normalised text is read differently from the text as written"
    previous_word, previous_end = None, 0
    for piece, (begin, end), word in zip(coded.tokens, coded.offsets, coded.word_ids, strict=True):
        continues = piece.startswith(_PREFIX) and word == previous_word
        if normal[previous_end:begin].strip():
            return f"{normal[previous_end:begin]!r} before token {piece!r} has no token"
        if piece != tokenizer.unk_token:
            spelled = piece.removeprefix(_PREFIX) if continues else piece
            if spelled != normal[begin:end]:
                return f"token {piece!r} stands for {normal[begin:end]!r}"
            if (word == previous_word) != continues:
                return f"token {piece!r} says that a word starts, its place says otherwise"
        previous_word, previous_end = word, end
    if normal[previous_end:].strip():
        return f"{normal[previous_end:]!r} at the end has no token"
    return None
