"""A BERT with its MLM head as an ONNX graph of standard operators, built node by node.

It computes what `model/encoder.py` computes, in the same order, without tracing: the last layer and
the head run at the masked positions only, queries, keys and values are one matmul, and the decoder
shares the embedding matrix, which the file stores once.

Legend: B rows, L length, K most masked positions (`slots`) of a row, M masked positions in all, D
hidden, H heads, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import BertForMaskedLM

INPUTS = ("input_ids", "attention_mask", "slots")
OPSET = 23  # the first with Attention; LayerNormalization came with 17, Gelu with 20
_IR_VERSION = 11  # of the file format, as released with this opset
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
_EMBEDDINGS = "bert.embeddings"
_TRANSFORM = "cls.predictions.transform"


class _Graph:
    """Nodes and initialisers in the order of insertion, named like the weights of the model."""

    def __init__(self, model: BertForMaskedLM) -> None:
        self.state: dict[str, NDArray[np.float32]] = {
            name: t.detach().float().numpy() for name, t in model.state_dict().items()
        }
        self._eps = float(model.config.layer_norm_eps)
        self._weights: dict[str, NDArray[Any]] = {}
        self._nodes: list[Any] = []

    def weight(self, name: str, values: Any) -> str:
        self._weights[name] = np.ascontiguousarray(values)
        return name

    def node(
        self, kind: str, inputs: list[str], name: str, *outputs: str, **attributes: Any
    ) -> str:
        """Add a node, by default with one output of the node's name; return that name."""
        from onnx import helper

        node = helper.make_node(kind, inputs, outputs or [name], name=name, **attributes)
        self._nodes.append(node)
        return name

    def linear(self, x: str, name: str, *sources: str) -> str:
        """x W^T + b of one or several concatenated linear layers; the matmul is `name`/MatMul."""
        weight = np.concatenate([self.state[f"{source}.weight"] for source in sources])
        bias = np.concatenate([self.state[f"{source}.bias"] for source in sources])
        matmul = self.node("MatMul", [x, self.weight(f"{name}.weight", weight.T)], f"{name}/MatMul")
        return self.node("Add", [matmul, self.weight(f"{name}.bias", bias)], f"{name}/Add")

    def norm(self, x: str, name: str) -> str:
        parts = [
            self.weight(f"{name}.{part}", self.state[f"{name}.{part}"])
            for part in ("weight", "bias")
        ]
        return self.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=self._eps)

    def finished(self, inputs: dict[str, list[str]], output: str, width: int) -> ModelProto:
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self._nodes,
            "bert_at_slots",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["M", width])],
            [numpy_helper.from_array(values, name) for name, values in self._weights.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="fitb"
        )


def graph_of(model: BertForMaskedLM) -> ModelProto:
    """Build the ONNX model, in fp32.

    Inputs, all int64: input_ids (B, L); attention_mask (B, L), 0 on padding; slots (B, K), masked
    positions, padded with -1. Output: logits (M, V) fp32 at the masked positions, row by row.

    Args:
        model: BERT with its MLM head, on the CPU, in fp32.
    Raises: ConfigError if its activation has no ONNX operator.
    """
    config = model.config
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(
            f"hidden_act={config.hidden_act!r} has no ONNX operator; expected one of"
            f" {', '.join(_ACTIVATIONS)}; export without --onnx"
        )
    graph = _Graph(model)
    length, num_slots = (
        graph.node("Shape", [of], f"length_of_{of}", start=1, end=2)
        for of in (INPUTS[0], INPUTS[2])
    )
    state = _embeddings(graph, length)
    keep = _mask(graph, length, "keep")
    for number in range(config.num_hidden_layers - 1):
        state = _layer(graph, state, state, keep, f"bert.encoder.layer.{number}", config)
    asked = _at_slots(graph, state)
    keep = _mask(graph, num_slots, "keep_at_slots")
    name = f"bert.encoder.layer.{config.num_hidden_layers - 1}"
    _head(graph, _layer(graph, asked, state, keep, name, config), config.hidden_act)
    shapes = (["B", "L"], ["B", "L"], ["B", "K"])
    return graph.finished(dict(zip(INPUTS, shapes, strict=True)), "logits", config.vocab_size)


def encoder_products(model: ModelProto) -> list[str]:
    """Return the names of the MatMul nodes of the encoder's linear layers."""
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name.startswith("bert.encoder.")
    ]


def _mask(graph: _Graph, queries: str, name: str) -> str:
    """(B, 1, queries, L) bool attention mask; onnxruntime does not materialise the expansion."""
    from onnx import TensorProto

    axes = graph.weight("mask_axes", np.array([1, 2]))
    real = graph.node("Cast", ["attention_mask"], f"{name}/real", to=TensorProto.BOOL)
    keys = graph.node("Unsqueeze", [real, axes], f"{name}/keys")
    one = graph.weight("one", np.array([1]))
    shape = graph.node("Concat", [one, one, queries, one], f"{name}/shape", axis=0)
    return graph.node("Expand", [keys, shape], name)  # dimensions of 1 stay as they are


def _at_slots(graph: _Graph, state: str) -> str:
    """Gather (B, L, D) -> (B, K, D); padding of `slots` reads position 0."""
    zero = graph.weight("no_position", np.array(0))
    places = graph.node("Max", ["slots", zero], "positions")
    last = graph.weight("last", np.array([2]))
    indices = graph.node("Unsqueeze", [places, last], "positions/index")
    return graph.node("GatherND", [state, indices], "state_at_slots", batch_dims=1)


def _embeddings(graph: _Graph, length: str) -> str:
    """(B, L, D): LayerNorm of word + position + first token type embeddings."""
    words, positions, types = (
        f"{_EMBEDDINGS}.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    )
    graph.weight(words, graph.state[words])
    graph.weight("places", graph.state[positions] + graph.state[types][0])
    found = graph.node("Gather", [words, "input_ids"], f"{_EMBEDDINGS}/words")
    zero = graph.weight("zero", np.array([0]))
    places = graph.node("Slice", ["places", zero, length, zero], f"{_EMBEDDINGS}/places")
    total = graph.node("Add", [found, places], f"{_EMBEDDINGS}/Add")
    return graph.norm(total, f"{_EMBEDDINGS}.LayerNorm")


def _layer(graph: _Graph, asked: str, state: str, keep: str, name: str, config: Any) -> str:
    """One encoder layer: (B, L, D) -> (B, L, D), or (B, K, D) if `asked` holds K queries."""
    of = f"{name}.attention.self"
    maps = [f"{of}.{part}" for part in ("query", "key", "value")]
    parts = [f"{of}/{part}" for part in ("query", "key", "value")]
    if asked == state:
        together = graph.linear(state, of, *maps)
        graph.node("Split", [together], f"{of}/Split", *parts, axis=-1, num_outputs=3)
    else:
        parts[0] = graph.linear(asked, maps[0], maps[0])
        together = graph.linear(state, of, *maps[1:])
        graph.node("Split", [together], f"{of}/Split", *parts[1:], axis=-1, num_outputs=2)
    heads = config.num_attention_heads
    context = graph.node(
        "Attention",
        [*parts, keep],
        f"{of}/Attention",
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=(config.hidden_size // heads) ** -0.5,
    )
    between = _added(graph, context, asked, f"{name}.attention.output")
    inner = graph.linear(between, f"{name}.intermediate.dense", f"{name}.intermediate.dense")
    kind, attributes = _ACTIVATIONS[config.hidden_act]
    active = graph.node(kind, [inner], f"{name}.intermediate/{kind}", **attributes)
    return _added(graph, active, between, f"{name}.output")


def _added(graph: _Graph, x: str, before: str, name: str) -> str:
    """LayerNorm of a linear layer plus the residual `before`."""
    mapped = graph.linear(x, f"{name}.dense", f"{name}.dense")
    total = graph.node("Add", [mapped, before], f"{name}/Add")
    return graph.norm(total, f"{name}.LayerNorm")


def _head(graph: _Graph, state: str, activation: str) -> None:
    """The MLM head, without the padding of `slots`: (B, K, D) -> (M, V)."""
    there = graph.node("GreaterOrEqual", ["slots", "no_position"], "there")
    indices = graph.node("Transpose", [graph.node("NonZero", [there], "there/T")], "there/index")
    at_slots = graph.node("GatherND", [state, indices], "at_slots")
    mapped = graph.linear(at_slots, f"{_TRANSFORM}.dense", f"{_TRANSFORM}.dense")
    kind, attributes = _ACTIVATIONS[activation]
    active = graph.node(kind, [mapped], f"{_TRANSFORM}/{kind}", **attributes)
    state = graph.norm(active, f"{_TRANSFORM}.LayerNorm")
    words, decoder = f"{_EMBEDDINGS}.word_embeddings.weight", "cls.predictions.decoder.weight"
    if not np.array_equal(graph.state[words], graph.state[decoder]):  # embeddings are not tied
        words = graph.weight(decoder, graph.state[decoder])
    # The bias of the decoder; `cls.predictions.bias` is the same tensor in tied models only.
    bias = graph.weight("cls.predictions.bias", graph.state["cls.predictions.decoder.bias"])
    columns = graph.node("Transpose", [words], "cls.predictions.decoder/T", perm=[1, 0])
    matmul = graph.node("MatMul", [state, columns], "cls.predictions.decoder/MatMul")
    graph.node("Add", [matmul, bias], "logits")
