"""Changes of a saved model's files, as others publish them."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def edit_config(folder, without=(), **changes):
    path = Path(folder) / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in without}))
    return folder


def edit_weights(folder, change):
    path = Path(folder) / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in change(load_file(path)).items()}
    save_file(weights, path, {"format": "pt"})
    return folder
