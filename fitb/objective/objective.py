"""The training objective: student, projections and the weighted loss terms.

One module has all trained parameters, the student and the projections, so that DeepSpeed wraps one
module; the teacher stays outside and provides plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fitb.base.errors import ConfigError
from fitb.config import AlgorithmsConfig, ObjectiveConfig
from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from fitb.model.encoder import DEFAULT, encode, logits_at
from fitb.model.layer_map import resolve
from fitb.objective.attention import attention_loss, relation_loss
from fitb.objective.losses import hidden_loss, slot_losses

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

T = TypeVar("T")
_OF_LAYERS = ("embedding", "hidden", "attention", "relation")  # terms that compare states


@dataclass(frozen=True)
class Features:
    """Outputs of a model for a batch, at the compared layers.

    Args:
        hidden: (B, L, D) each: the embedding output, then the compared layers.
        heads: queries and keys, (B, H, L, d) each, of the compared layers, and values if relations
            are compared.
        logits: (B * K, V) at masked positions; None if no term needs them.
    """

    hidden: tuple[torch.Tensor, ...]
    heads: tuple[tuple[torch.Tensor, ...], ...]
    logits: torch.Tensor | None

    def part(self, begin: int, end: int, num_rows: int) -> Features:
        """Return the features of rows begin .. end - 1, of num_rows."""
        logits = self.logits
        if logits is not None:
            per_row = len(logits) // num_rows
            logits = logits[begin * per_row : end * per_row]
        return Features(
            tuple(state[begin:end] for state in self.hidden),
            tuple(tuple(states[begin:end] for states in layer) for layer in self.heads),
            logits,
        )


class Tap(nn.Module):
    """A BERT that returns features, none of which is an L x L matrix.

    Args:
        model: the model, which is not changed.
        layers: numbers of the layers to return, from 1; empty returns no hidden states.
        projected: how many of queries, keys and values to return: 0, 2 or 3.
        head: whether to return logits.
    Attributes:
        kernels: execution options, to be set before the first call.
    """

    def __init__(
        self, model: BertForMaskedLM, layers: Sequence[int], *, projected: int, head: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.num_heads = int(model.config.num_attention_heads)
        self.head = head
        self.kernels = DEFAULT
        self._layers = tuple(layers)
        self._projected = projected

    def forward(self, batch: Batch) -> Features:
        encoded = encode(
            self.model, batch.input_ids, batch.real(), layers=self._layers, kernels=self.kernels
        )
        logits = None
        if self.head:
            logits = logits_at(self.model, encoded.last, batch.slots, self.kernels)
        return Features(
            encoded.hidden if self._layers else (),
            tuple(states[: self._projected] for states in encoded.heads if self._projected),
            logits,
        )

    def compile(self, cuda_graphs: bool = False) -> None:
        """Compile the forward pass, as `compiled` does."""
        self.forward = compiled(self.forward, cuda_graphs)  # type: ignore[method-assign]


def compiled(forward: Callable[..., T], cuda_graphs: bool = False) -> Callable[..., T]:
    """Compile a function of a batch: static shapes, one graph, or an error that says why not.

    It always has the mask of padding: a second graph, without, would stop every rank for minutes
    at a step that nobody foresees.

    Args:
        forward: function whose first argument is a Batch.
        cuda_graphs: whether to replay its launches as a CUDA graph.
    """
    mode = "reduce-overhead" if cuda_graphs else None
    graph = torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)

    def call(batch: Batch, *others: Any) -> T:
        return graph(replace(batch, padded=True), *others)

    return call


class Objective(nn.Module):
    """Student, projections and loss terms.

    Args:
        student: model to train.
        teacher: teacher, of which only the geometry is used; None: plain MLM, only the mlm term.
        config: weights, temperature, layer map, relation heads, form.
        attention: version of the attention term, `algorithms.attention`.
    Attributes:
        asks_teacher: whether any term compares with the teacher.
        names: names of the terms; the last is student/top1, the accuracy at masked positions.
        weights: weights of the terms; 0 for student/top1.
    """

    def __init__(
        self,
        student: BertForMaskedLM,
        teacher: BertForMaskedLM | None,
        config: ObjectiveConfig,
        attention: int = AlgorithmsConfig.attention,
    ) -> None:
        super().__init__()
        self.config = config
        self._attention = attention
        num_layers = int(student.config.num_hidden_layers)
        num_teacher = int(teacher.config.num_hidden_layers) if teacher else 0
        self.layers = resolve(config.layer_map, num_layers, num_teacher) if teacher else ()
        self._uses = {
            name: weight > 0 and (teacher is not None or name == "mlm")
            for name, weight in config.weights.items()
        }
        if not any(self._uses.values()):
            raise ConfigError("without a teacher only objective.mlm counts, and its weight is 0")
        self._compares = any(self._uses[name] for name in _OF_LAYERS)
        self.asks_teacher = self._compares or self._uses["logits"]
        self._projected = 3 if self._uses["relation"] else 2 * self._uses["attention"]
        self._relation_heads = config.relation_heads or int(student.config.num_attention_heads)
        self.student = Tap(
            student,
            range(1, num_layers + 1) if self._compares else (),
            projected=self._projected,
            head=self._uses["logits"] or self._uses["mlm"],
        )
        self.projections = nn.ModuleList(self._build_projections(student, teacher))
        self.names, self.weights = self._names_and_weights(num_layers)

    def _build_projections(self, student: Any, teacher: Any) -> list[nn.Module]:
        """Bias-free map per compared state (eq. 8, 9), or the shared one of TinyBERT's code."""
        if not (self._uses["embedding"] or self._uses["hidden"]):
            return []
        narrow, wide = student.config.hidden_size, teacher.config.hidden_size
        if self.config.form == "tinybert_reference":
            return [nn.Linear(narrow, wide)]
        states = ["embedding"] * self._uses["embedding"]
        states += ["hidden"] * len(self.layers) * self._uses["hidden"]
        return [nn.Linear(narrow, wide, bias=False) for _ in states]

    def _names_and_weights(self, num_layers: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        layers = range(1, num_layers + 1)
        names_of = {
            term: [f"distill/{term}/layer_{i}" for i in layers]
            for term in ("hidden", "attention", "relation")
        }
        names_of |= {
            "embedding": ["distill/embedding"],
            "logits": ["distill/logits"],
            "mlm": ["student/loss_mlm"],
        }
        used = [(term, weight) for term, weight in self.config.weights.items() if self._uses[term]]
        named = [(name, weight) for term, weight in used for name in names_of[term]]
        named += [("student/top1", 0.0)] if self.student.head else []
        names, weights = zip(*named, strict=True)
        return names, weights

    def begin_projections(self, basis: torch.Tensor) -> None:
        """Set every projection to one map from the student's width to the teacher's: (D, d)."""
        with torch.no_grad():
            for projection in self.projections:
                projection.weight.copy_(basis)  # type: ignore[operator]
                if projection.bias is not None:
                    projection.bias.zero_()  # type: ignore[operator]

    def teacher_tap(self, teacher: BertForMaskedLM) -> Tap:
        """Freeze the teacher, and return a Tap of the layers that this objective compares."""
        nn.Module.eval(teacher)
        teacher.requires_grad_(False)
        return Tap(
            teacher,
            self.layers if self._compares else (),
            projected=self._projected,
            head=self._uses["logits"],
        )

    def counts(self, batch: Batch) -> torch.Tensor:
        """Divisors of the terms' sums, from the batch alone: (terms,) float64.

        TinyBERT's code averages hidden states over padding too, and divides scores by L x L, though
        it zeroes the padded key columns.
        """
        reference = self.config.form == "tinybert_reference"
        real = torch.ones_like(batch.attention_mask) if reference else batch.attention_mask
        width = int(self.projections[0].out_features) if len(self.projections) else 0  # type: ignore[arg-type]
        hidden = real.sum().double() * width
        pairs = real.sum(1).square().sum().double()
        slots = (batch.labels != IGNORE_INDEX).sum().double()
        kinds = {
            "embedding": hidden,
            "hidden": hidden,
            "attention": pairs * self.student.num_heads,
            "relation": pairs * self._relation_heads,
        }
        return torch.stack([kinds.get(name.split("/")[1], slots) for name in self.names])

    def forward(self, batch: Batch, teacher: Features | None) -> torch.Tensor:
        """Run the student on a batch.

        Args:
            batch: masked rows.
            teacher: features of the teacher for the batch; None without a teacher.
        Returns: sums of the terms, (terms,) fp32 with a graph.
        """
        return self._terms(batch, self.student(batch), teacher)

    def compile(self, cuda_graphs: bool = False) -> None:
        """Compile the student and the losses into one graph each, as `compiled` does."""
        self.student.compile(cuda_graphs)
        self._terms = compiled(self._terms)  # type: ignore[method-assign]

    def _terms(self, batch: Batch, student: Features, teacher: Features | None) -> torch.Tensor:
        real = batch.attention_mask if batch.padded else None
        reference = self.config.form == "tinybert_reference"
        tokens = None if reference else real
        sums = []
        if teacher is not None:
            states = [0] * self._uses["embedding"]
            states += range(1, len(self.layers) + 1) if self._uses["hidden"] else ()
            for place, state in enumerate(states):
                projected = self.projections[0 if reference else place](student.hidden[state])
                sums.append(hidden_loss(projected, teacher.hidden[state], tokens))
            layers = list(zip(student.heads, teacher.heads, strict=True))
            if self._uses["attention"]:
                for ours, theirs in layers:
                    pair = (ours[0], ours[1]), (theirs[0], theirs[1])
                    sums.append(attention_loss(*pair, tokens, real, self._attention))
            if self._uses["relation"]:
                sums += [relation_loss(*layer, self._relation_heads, real) for layer in layers]
        if student.logits is not None:
            soft, hard, hits = slot_losses(
                student.logits,
                teacher.logits if teacher is not None else None,
                batch.labels.flatten(),
                self.config.temperature,
            )
            sums += [soft] * self._uses["logits"] + [hard] * self._uses["mlm"] + [hits]
        return torch.stack(sums)
