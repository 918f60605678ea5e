"""Inference with onnxruntime: export of model.onnx, comparison with PyTorch, int8 quantisation.

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
TOLERANCE = 1e-4  # absolute difference of a logit in fp32 between onnxruntime and PyTorch
_PACKAGES = ("onnx", "onnxruntime")
_FINGERPRINT = "fitb.tokenizer"
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # nothing to fuse
_CHECKED_LENGTHS = ((1,), (24,), (7, 40, 3, 19))  # tokens per row of the batches compared


class OnnxScorer:
    """A Scorer over onnxruntime, on the CPU.

    Args:
        path: file that `export_onnx` or `quantise` wrote.
        tokenizer: tokenizer of the model.
        max_length: row length in tokens at which the model was trained.
        threads: threads of an operator; 0 takes one per core that this process may use.
    Raises: SystemFault if onnxruntime is not installed; DataError if the file is no such model.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, threads: int = 0
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._session = _session(path, threads)

    def logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        """See Scorer."""
        return in_windows(self._logits, rows, positions, self.max_length)

    def _logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        input_ids, real = padded(rows, self.tokenizer.pad_token_id)
        mask = np.ones(input_ids.shape, np.int64) if real is None else real.numpy().astype(np.int64)
        slots = padded_positions(positions).numpy()
        return finite(torch.from_numpy(self.run(input_ids.numpy(), mask, slots)))

    def run(self, input_ids: Any, attention_mask: Any, slots: Any) -> Any:
        """Return logits (M, V) fp32 for int64 arrays with the shapes of `graph_of`."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask, slots), strict=True))
        return self._session.run(["logits"], feeds)[0]

    @property
    def vocab_size(self) -> int:
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer with which the file was exported."""
        return str(self._session.get_modelmeta().custom_metadata_map.get(_FINGERPRINT, ""))


def load_onnx(source: str, file: str = FP32, threads: int = 0) -> OnnxScorer:
    """Open an ONNX file of an exported folder; the PyTorch weights are not read.

    Args:
        source: folder that `fitb export --onnx` wrote.
        file: name of the file, FP32 or INT8.
        threads: as in OnnxScorer.
    Raises: DataError if the file is missing or damaged; ContractError if it does not match the
        tokenizer of the folder; SystemFault without onnxruntime.
    """
    path = Path(source) / file
    if why := denied(path):
        raise DataError(f"model {source!r} cannot be read: {why}")
    if not path.is_file():
        flag = "--int8" if file == INT8 else "--onnx"
        raise DataError(
            f"{source!r} has no {file}; expected a folder that `fitb export {flag}` wrote; export"
            " the model, or use --backend torch"
        )
    tokenizer = load_tokenizer(source)
    config = read_config(source)
    settle(config, source)
    scorer = OnnxScorer(path, tokenizer, trained_length(config), threads)
    _check_finite(path)
    config.vocab_size = scorer.vocab_size
    with torch.device("meta"):  # shapes only
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
                f"{path} was exported with tokenizer {scorer.tokenizer_fingerprint[:12]}, but"
                f" {source!r} has {str(fingerprint)[:12]}: token ids would differ; export the model"
                " again"
            ]
        )
    return scorer


def _check_finite(path: Path) -> None:
    """Raise DataError naming the weights of a model file that contain NaN or infinity."""
    import onnx

    with reading("model", str(path.parent), path.name):
        weights = onnx.load(path).graph.initializer
        found = [w.name for w in weights if not np.isfinite(onnx.numpy_helper.to_array(w)).all()]
    if found:
        raise DataError(
            f"{path}: {', '.join(found[:4])} not finite (NaN or infinity), so no logit would be;"
            " export another checkpoint"
        )


def export_onnx(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Export a model as FP32 and compare its logits with PyTorch's.

    Args:
        model: BERT with its MLM head, in eval mode, fp32, on the CPU.
        tokenizer: tokenizer of the model.
        folder: folder that already holds the tokenizer.
    Returns: the largest absolute difference of a logit over random rows of mixed lengths.
    Raises: SystemFault if the difference exceeds TOLERANCE, or the extra is not installed;
        ConfigError if the model's activation has no ONNX operator.
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
    """Write INT8 next to FP32: dynamic quantisation of the encoder's matmuls.

    Weights are quantised symmetrically per output channel, activations dynamically with one scale
    per batch, so rows of a batch affect each other's rounding. Embeddings and decoder stay in fp32
    (docs/experiments.md). Weights use 7 bits: CPUs without VNNI accumulate pairs of 8-bit products
    in 16 bits, which saturate.

    Args:
        folder: folder that holds FP32.
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
    """Return the largest absolute difference of a logit over random rows of mixed lengths."""
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
    """Raise SystemFault if onnx or onnxruntime is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(
            f"{' and '.join(missing)} not installed, needed for ONNX; run `pip install"
            " 'fitb[onnx]'`, or leave out --onnx"
        )


def _session(path: Path, threads: int) -> Any:
    require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads spin while they wait for the next operator, and sleep between two calls.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions derive from Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be opened: {reason}; export the model again") from error
    named = sorted(one.name for one in session.get_inputs())
    if named != sorted(INPUTS):
        raise DataError(
            f"{path} takes {', '.join(named)}; expected {', '.join(INPUTS)}; export the model again"
        )
    return session
