"""Interface of a masked language model for filling: logits at given positions of given rows.

Legend: V vocabulary, M positions asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.pytorch import torch_scorer
from fitb.infer.request import Backend
from fitb.infer.windows import Rows
from fitb.model.contract import check_contract
from fitb.model.load import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Scorer(Protocol):
    """A masked language model and its tokenizer; not thread-safe.

    Args:
        tokenizer: fast tokenizer of the model.
        max_length: row length in tokens at which the model was trained; longer rows are read in
            windows around the positions asked for.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def logits(self, rows: Rows, positions: Rows) -> torch.Tensor:
        """Return the logits at the positions asked for, row by row: (M, V) fp32 on the CPU.

        Args:
            rows: token ids with [CLS] and [SEP], of any lengths.
            positions: positions in each row, in the order wanted; at least one in total.
        """
        ...


def load_scorer(source: str, backend: Backend = "torch", threads: int = 0) -> Scorer:
    """Load a model for filling.

    Args:
        source: Hugging Face folder or hub name, a run or one of its checkpoints; for onnx and
            onnx-int8 a folder that `fitb export` wrote with that file.
        backend: torch uses a GPU if there is one, else the CPU with packed weights; onnx and
            onnx-int8 use onnxruntime on the CPU.
        threads: threads of onnxruntime; 0 takes one per core.
    Raises: ContractError if the model has no trained MLM head or does not match its tokenizer;
        DataError if the file of the backend is missing; SystemFault without onnxruntime.
    """
    if backend != "torch":
        from fitb.infer.onnx import FP32, INT8, load_onnx

        return load_onnx(source, INT8 if backend == "onnx-int8" else FP32, threads)
    tokenizer = load_tokenizer(source)
    loaded = load_model(source, tokenizer=tokenizer)
    check_contract(tokenizer=tokenizer, manifest=None, student=loaded, needs_student_head=True)
    return torch_scorer(loaded.model, tokenizer)
