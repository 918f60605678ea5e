"""Sections of the configuration that decide what a run learns: models, masks, losses, optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from fitb.config.checks import check_range, require


@dataclass(frozen=True)
class Geometry:
    """A BERT with random weights, by its sizes (TinyBERT: Jiao et al. 2020, section 4.1).

    Args:
        num_hidden_layers: number of Transformer layers.
        hidden_size: width of the hidden states; a multiple of the number of heads.
        intermediate_size: width of the feed-forward layer.
        num_attention_heads: number of heads; must be the teacher's if attention is distilled.
    """

    num_hidden_layers: int = 4
    hidden_size: int = 312
    intermediate_size: int = 1200
    num_attention_heads: int = 12

    def __post_init__(self) -> None:
        check_range("", self, *(key.name for key in fields(self)), low=1)
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size={self.hidden_size} is not a multiple of"
            f" num_attention_heads={self.num_attention_heads}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Teacher and student.

    Args:
        teacher: Hugging Face folder or hub name, or a geometry; null trains the mlm term alone.
        student: Hugging Face folder or hub name, or a geometry with random weights.
        dropout: dropout probability of the student; null keeps that of its configuration.
        positions: initial position embeddings of a student with random weights: random, or copied
            from a teacher of the same width.
        init: random, or teacher: embeddings, layers and head of a student of the same width are
            copied; of a narrower one, embeddings and head begin in the teacher's largest principal
            components.
        init_layers: teacher layer (1 = first) that each student layer begins as; uniform spreads
            them evenly, lower takes the first ones.
        teacher_precision: same as the student's, or fp8 for the matmuls of the encoder, on GPUs
            that support it.
    """

    teacher: Geometry | str | None = None
    student: Geometry | str = field(default_factory=Geometry)
    dropout: float | None = None
    positions: Literal["random", "teacher"] = "random"
    init: Literal["random", "teacher"] = "random"
    init_layers: Literal["uniform", "lower"] | list[int] = "uniform"
    teacher_precision: Literal["same", "fp8"] = "same"

    def __post_init__(self) -> None:
        check_range("model.", self, "dropout", low=0, high=1)
        for name in ("teacher", "student"):
            value, sizes = getattr(self, name), [key.name for key in fields(Geometry)]
            require(
                not (isinstance(value, str) and value.lstrip().startswith("{")),
                f"model.{name}={value}; expected a folder, a hub name or a geometry, whose keys are"
                f" {', '.join(sizes)}",
            )
        for name in ("positions", "init"):
            require(
                getattr(self, name) == "random"
                or bool(self.teacher and isinstance(self.student, Geometry)),
                f"model.{name}=teacher, with model.teacher={self.teacher} and model.student="
                f"{self.student}; expected a teacher, and the student as a geometry; or use"
                f" --model.{name} random",
            )


@dataclass(frozen=True)
class MaskConfig:
    """Masking of rows.

    Args:
        strategy: token (Devlin et al. 2019), whole_word, or span (SpanBERT: Joshi et al. 2020).
        fraction: share of a row's ordinary tokens that are masked, an exact count per row.
        mask_share: share of the masked positions that show [MASK].
        random_share: share of them that show a random ordinary token; the rest keep their token.
        span_p: parameter of the geometric distribution of span lengths in words.
        span_max_words: longest span in words.
    """

    strategy: Literal["token", "whole_word", "span"] = "whole_word"
    fraction: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    span_p: float = 0.2
    span_max_words: int = 10

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, f"mask.fraction={self.fraction}; between 0 and 1")
        require(
            self.mask_share >= 0
            and self.random_share >= 0
            and self.mask_share + self.random_share <= 1,
            f"mask_share={self.mask_share} and random_share={self.random_share};"
            " neither below 0, their sum at most 1",
        )
        require(0 < self.span_p <= 1, f"mask.span_p={self.span_p}; above 0, at most 1")
        check_range("mask.", self, "span_max_words", low=1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms; a term of weight 0 is neither computed nor logged.

    Args:
        embedding: mean squared error of the embedding output (TinyBERT, eq. 9).
        hidden: mean squared error of hidden states, summed over layers (eq. 8).
        attention: mean squared error of attention scores, summed over layers (eq. 7).
        relation: mean squared error of the products of queries, of keys and of values with one
            another, before the softmax, summed over these three and over layers (MiniLMv2).
        logits: soft cross-entropy at masked positions (eq. 10), times temperature squared.
        mlm: cross-entropy with the true tokens at masked positions.
        relation_heads: number of heads that relations are split into, whatever the models' own; a
            divisor of both hidden sizes; null takes the student's.
        temperature: softmax temperature of the soft cross-entropy.
        layer_map: teacher layer (1 = first) for each student layer; uniform spreads them evenly,
            lower takes the first ones.
        form: masked_mean averages over real tokens; tinybert_reference uses the formulas of the
            original code, padding included.
    """

    embedding: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    relation: float = 0.0
    logits: float = 1.0
    mlm: float = 1.0
    relation_heads: int | None = None
    temperature: float = 1.0
    layer_map: Literal["uniform", "lower"] | list[int] = "uniform"
    form: Literal["masked_mean", "tinybert_reference"] = "masked_mean"

    def __post_init__(self) -> None:
        weights = tuple(self.weights.values())
        check_range("objective.", self, "relation_heads", low=1)
        require(all(w >= 0 for w in weights), f"objective weights {weights}; none below 0")
        require(max(weights) > 0, "every objective weight is 0; give at least one term a weight")
        require(self.temperature > 0, f"temperature={self.temperature}; above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Weights by term, in the order of the logs; the last compares nothing with a teacher."""
        terms = ("embedding", "hidden", "attention", "relation", "logits", "mlm")
        return {term: getattr(self, term) for term in terms}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Args:
        lr: peak learning rate.
        warmup_steps: steps of linear warm-up.
        schedule: shape of the learning rate from the peak to the end of the run; wsd stays at the
            peak until the last `decay_steps` and then falls with the square root of their share.
        decay_steps: steps of the decay of wsd; 0 has none, so that the end of a run can be moved.
        betas: decay rates of the two moments.
        eps: term added to the denominator.
        weight_decay: decoupled weight decay; not applied to biases and LayerNorm.
        clip_norm: limit of the global gradient norm; 0 turns clipping off.
    """

    lr: float = 5e-4
    warmup_steps: int = 1000
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    decay_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        names = ("lr", "warmup_steps", "decay_steps", "eps", "weight_decay", "clip_norm")
        check_range("optim.", self, *names, low=0)
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas={self.betas}; in [0, 1)")
        require(
            self.schedule == "wsd" or not self.decay_steps,
            f"optim.decay_steps={self.decay_steps} with optim.schedule={self.schedule}; only wsd"
            " has one; use --optim.decay_steps 0, or --optim.schedule wsd",
        )


@dataclass(frozen=True)
class AlgorithmsConfig:
    """Versions of functions that decide what a step computes; a run keeps its initial ones.

    Args:
        order: version of the permutation of rows.
        masks: version of the choice of masked positions; 1 clipped the lengths of spans, 2 masked
            long words less often than short ones.
        schedule: version of the learning rate as a function of the step.
        attention: version of the attention term; 1 lost digits where student and teacher are close.
        norm: version of the norm of gradients that clips them; 1 summed squares in fp32.
    """

    order: int = 1
    masks: int = 3
    schedule: int = 1
    attention: int = 2
    norm: int = 2

    def __post_init__(self) -> None:
        for key in fields(self):
            value, newest = getattr(self, key.name), getattr(type(self), key.name)
            require(
                value in range(1, newest + 1),
                f"algorithms.{key.name}={value}; 1 to {newest}; use the fitb that started the run",
            )
