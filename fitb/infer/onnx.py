"""Scoring through onnxruntime: writing model.onnx, holding it against PyTorch, 8-bit products.

Legend: B rows, L length, V vocabulary, M positions asked for.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BertForMaskedLM

from fitb.base import rng
from fitb.base.errors import ContractError, DataError, SystemFault
from fitb.base.hub import reading
from fitb.base.modes import denied
from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.graph import INPUTS, encoder_products, graph_of
from fitb.infer.pytorch import TorchScorer, finite, padded, padded_positions
from fitb.infer.windows import Rows, in_windows
from fitb.model.configuration import read_config
from fitb.model.contract import check_contract
from fitb.model.loaded import Loaded, tokenizer_fingerprint_of
from fitb.model.positions import settle, trained_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FP32, INT8 = "model.onnx", "model-int8.onnx"
TOLERANCE = 1e-4  # of a logit, in fp32, between onnxruntime and PyTorch
_PACKAGES = ("onnx", "onnxruntime")
_FINGERPRINT = "fitb.tokenizer"
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # nothing to fuse: it was written so
_CHECKED_LENGTHS = ((1,), (24,), (7, 40, 3, 19))  # rows of the batches that are compared


class OnnxScorer:
    """A Scorer over onnxruntime, on the CPU.

    Args:
        path: what `export_onnx` or `quantise` wrote.
        tokenizer: the model's own.
        max_length: tokens that it was trained to read at once.
        threads: 0 is one for each core that this process may use.
    Raises: SystemFault where onnxruntime is not installed; DataError where the file is no model.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, threads: int = 0
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._session = _session(path, threads)

    def logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        """As Scorer says."""
        return in_windows(self._logits, rows, positions, self.max_length)

    def _logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        input_ids, real = padded(rows, self.tokenizer.pad_token_id)
        mask = np.ones(input_ids.shape, np.int64) if real is None else real.numpy().astype(np.int64)
        slots = padded_positions(positions).numpy()
        return finite(torch.from_numpy(self.run(input_ids.numpy(), mask, slots)))

    def run(self, input_ids: Any, attention_mask: Any, slots: Any) -> Any:
        """Return the logits (M, V) fp32 of arrays as `graph_of` takes them."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask, slots), strict=True))
        return self._session.run(["logits"], feeds)[0]

    @property
    def vocab_size(self) -> int:
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that the file was written beside."""
        return str(self._session.get_modelmeta().custom_metadata_map.get(_FINGERPRINT, ""))


def load_onnx(source: str, file: str = FP32, threads: int = 0) -> OnnxScorer:
    """Open a model file of an exported folder; its weights in PyTorch's form are not read.

    Args:
        source: folder that `fitb export --onnx` wrote.
        file: FP32 or INT8.
    Raises: DataError where the file is not there; ContractError where it does not fit the tokenizer
        beside it; SystemFault without onnxruntime.
    """
    path = Path(source) / file
    if why := denied(path):
        raise DataError(f"model {source!r} cannot be read: {why}")
    if not path.is_file():
        flag = "--int8" if file == INT8 else "--onnx"
        raise DataError(
            f"{source!r} holds no {file}; expected a folder that `fitb export {flag}` wrote; write"
            " one, or use --backend torch"
        )
    tokenizer = load_tokenizer(source)
    config = read_config(source)
    settle(config, source)
    scorer = OnnxScorer(path, tokenizer, trained_length(config), threads)
    _check_finite(path)
    config.vocab_size = scorer.vocab_size
    with torch.device("meta"):  # sizes alone
        sizes = BertForMaskedLM(config)
    fingerprint = tokenizer_fingerprint_of(source)
    check_contract(
        tokenizer=tokenizer,
        manifest=None,
        student=Loaded(sizes, str(path), (), fingerprint),
        needs_student_head=True,
    )
    if scorer.tokenizer_fingerprint != fingerprint:
        raise ContractError(
            [
                f"{path} was written beside the tokenizer {scorer.tokenizer_fingerprint[:12]}, and"
                f" {source!r} holds {str(fingerprint)[:12]}: the same text would be other ids;"
                " export the model again"
            ]
        )
    return scorer


def _check_finite(path: Path) -> None:
    """Raise DataError with the names of weights in a model file that hold NaN or an infinity."""
    require_extra()
    import onnx

    with reading("model", str(path.parent), path.name):
        weights = onnx.load(path).graph.initializer
        found = [w.name for w in weights if not np.isfinite(onnx.numpy_helper.to_array(w)).all()]
    if found:
        raise DataError(
            f"{path}: {', '.join(found[:4])} not finite (NaN or infinity), so every answer would"
            " be; export another checkpoint"
        )


def export_onnx(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Write FP32 into a folder that holds the tokenizer, and hold it against the model.

    Args:
        model: in eval mode, fp32, on the CPU.
    Returns: the largest difference of a logit over rows of mixed lengths, random ids.
    Raises: SystemFault where the difference is above TOLERANCE, or the extra is not installed;
        ConfigError where the model's activation has no operator.
    """
    require_extra()
    import onnx

    graph = graph_of(model)
    stamp = {_FINGERPRINT: tokenizer_fingerprint_of(str(folder)) or "", **_PREPARED}
    onnx.helper.set_model_props(graph, stamp)
    onnx.save(graph, folder / FP32)
    scorer = OnnxScorer(folder / FP32, tokenizer, trained_length(model.config))
    found = largest_difference(scorer, TorchScorer(model, tokenizer))
    if not found <= TOLERANCE:
        raise SystemFault(
            f"a logit of {FP32} differs from PyTorch's by {found:.3g}; expected at most"
            f" {TOLERANCE:g}; try another onnxruntime, or export without --onnx"
        )
    return found


def quantise(folder: Path) -> None:
    """Write INT8 beside FP32: the encoder's products in 8 bits, all else as it is.

    Weights are rounded once, symmetric, a scale for each output; activations as they come, one
    scale for the whole batch, so that rows of a batch change each other's rounding. Embeddings and
    decoder stay in fp32 (docs/experiments.md). Weights have 7 bits: without VNNI, processors add
    pairs of 8-bit products in 16 bits, which saturate.
    """
    require_extra()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(folder / FP32)
    quantize_dynamic(
        graph,
        folder / INT8,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=encoder_products(graph),
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def largest_difference(ours: OnnxScorer, theirs: TorchScorer) -> float:
    """Return the largest difference of a logit over rows of mixed lengths, random ids."""
    worst = 0.0
    for number, lengths in enumerate(_CHECKED_LENGTHS):
        sizes = [min(length, ours.max_length) for length in lengths]
        rows = [
            (rng.keyed(0, number, row, np.arange(size)) % np.uint64(ours.vocab_size)).tolist()
            for row, size in enumerate(sizes)
        ]
        positions = [sorted({0, size // 2, size - 1}) for size in sizes]
        difference = ours.logits(rows, positions) - theirs.logits(rows, positions)
        worst = max(worst, difference.abs().nan_to_num(nan=np.inf).max().item())
    return worst


def require_extra() -> None:
    """Raise SystemFault where onnx or onnxruntime is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(
            f"ONNX needs {' and '.join(missing)}, not installed here; run `pip install"
            " 'fitb[onnx]'`, or do without --onnx"
        )


def _session(path: Path, threads: int) -> Any:
    require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads wait for the next operator awake, and sleep between two calls.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds derive from Exception alone
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be opened: {reason}; export the model again") from error
    named = sorted(one.name for one in session.get_inputs())
    if named != sorted(INPUTS):
        raise DataError(
            f"{path} takes {', '.join(named)}; expected {', '.join(INPUTS)}; export the model again"
        )
    return session
