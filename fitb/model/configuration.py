"""Reading config.json of a BERT; configurations that fitb does not implement are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from safetensors import safe_open
from transformers import BertConfig, GenerationConfig
from transformers.activations import ACT2FN
from transformers.modeling_utils import load_state_dict

from fitb.base.errors import ConfigError
from fitb.base.hub import find_file, reading

CONFIG = "config.json"
_BERTS_OWN = "bert.embeddings."  # prefix of weights that only a BERT has
# Settings that no tensor's shape implies: a default could be wrong.
_REQUIRED = ("num_attention_heads", "hidden_act")
# Keys of published configurations that BertConfig does not know and that do not change a logit.
_NOTES = {
    *("model_type", "_name_or_path", "name_or_path", "name", "language"),
    *("dtype", "torch_dtype", "torchscript", "use_bfloat16", "xla_device"),
    *("finetuning_task", "task_specific_params", "num_labels", "_num_labels", "training"),
    *("tokenizer_class", "prefix", "sep_token_id", "eos_token_ids", "tie_encoder_decoder"),
    *("gradient_checkpointing", "output_past", "output_attentions", "output_all_encoded_layers"),
    *("use_return_dict", "attn_implementation", "_attn_implementation", "tf_legacy_loss"),
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type", "_commit_hash", "sentence_transformers"),
    "trained_length",  # tokens in a row, written by fitb
    *("transformers.js_config", "cross_attention_hidden_size", "_attn_implementation_autoset"),
}


def read_config(source: str) -> BertConfig:
    """Read the configuration of a folder or hub name, without running its code.

    Raises:
        ConfigError: it is not a BERT encoder that fitb implements; names every key.
        DataError: it is missing or cannot be read.
    """
    with reading("model", source, CONFIG):
        path = find_file(source, CONFIG)
        if path is None:
            raise FileNotFoundError(CONFIG)
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if said.get("model_type") is None:
            if not any(name.startswith(_BERTS_OWN) for name in weight_names(source)):
                raise ValueError('it has no model_type; add "model_type": "bert" if it is a BERT')
            said["model_type"] = "bert"  # as in TinyBERT's releases and many others
        _check(source, said)
        return BertConfig.from_dict(said)


def weight_names(source: str) -> Iterator[str]:
    """Yield the names of the weights of a folder or hub name, if any."""
    if path := find_file(source, "model.safetensors"):
        with safe_open(path, "pt") as tensors:
            yield from tensors.keys()
    elif path := find_file(source, "model.safetensors.index.json"):
        yield from json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    elif path := find_file(source, "pytorch_model.bin"):
        yield from load_state_dict(path, map_location="meta")  # weights_only: runs no code


def _check(source: str, said: Mapping[str, Any]) -> None:
    kind = said["model_type"]
    if kind != "bert" or said.get("is_decoder") or said.get("add_cross_attention"):
        named = "a decoder" if kind == "bert" else f"of type {kind!r}"
        raise ConfigError(
            f"model {source!r} is {named}; expected a BERT encoder (model_type 'bert');"
            " choose such a checkpoint"
        )
    absent = [key for key in _REQUIRED if key not in said]
    if absent:
        raise ConfigError(
            f"model {source!r}: its {CONFIG} lacks {' and '.join(absent)}, which cannot be derived"
            f" from its weights; add to {CONFIG} what the model was trained with"
        )
    if said["hidden_act"] not in ACT2FN:
        raise ConfigError(
            f"model {source!r}: hidden_act={said['hidden_act']!r}; expected an activation that"
            f" transformers has, such as gelu; correct its {CONFIG} or choose another checkpoint"
        )
    strange = [f"{key}={value!r}" for key, value in said.items() if _changes(key, value, said)]
    if strange:
        raise ConfigError(
            f"model {source!r}: its {CONFIG} has {', '.join(strange)}, which is not part of BERT;"
            f" choose a plain BERT, or, if it does not change the results, remove it from {CONFIG}"
        )


def _changes(key: str, value: Any, said: Mapping[str, Any]) -> bool:
    """Whether a key may change the results of a BERT: any unknown key with a true value."""
    if key == "auto_map":  # code of a tokenizer is checked with the tokenizer
        return not isinstance(value, dict) or any(name != "AutoTokenizer" for name in value)
    if key == "is_encoder_decoder":
        return bool(value)
    width, heads = said.get("hidden_size"), said["num_attention_heads"]
    plain = {
        "position_embedding_type": "absolute",
        "embedding_size": width,
        "emb_size": width,  # as TinyBERT calls it
        "num_key_value_heads": heads,
    }
    if not value or key in _NOTES or value == plain.get(key):
        return False
    generation = vars(GenerationConfig())  # type: ignore[no-untyped-call]  # in old files
    return key not in generation and key not in {field.name for field in fields(BertConfig)}
