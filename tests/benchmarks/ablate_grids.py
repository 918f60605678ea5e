"""Settings of the ablation: what each differs in from the flags that all runs share.

Three keys are no flags: `times_steps` multiplies the number of steps, `decay_share` is the share of
them that a decay takes, and `after` names the setting whose student this one begins with.
"""

from __future__ import annotations

from typing import Any


def off(*terms: str) -> dict[str, Any]:
    """Return weights of 0."""
    return {f"objective.{term}": 0 for term in terms}


NO_FLAGS = ("times_steps", "decay_share", "after")
STATES = ("embedding", "hidden", "attention")
NEW = {"model.init": "teacher", "algorithms.masks": 3}  # what the settings after the first change
ALONE = {"model.teacher": "null", "mask.fraction": 0.4, "optim.lr": 1e-3} | off(*STATES, "logits")
LOWER = NEW | {"model.init_layers": "lower", "objective.layer_map": "lower"}
HALF = {"times_steps": 0.5}
MANY = {"mask.fraction": 0.4}
BASE = LOWER | MANY
OLD = {"model.init": "random", "algorithms.masks": 2}
GRIDS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "copied": NEW,
        "random start, old masks": OLD,
        "random start": NEW | {"model.init": "random"},
        "old masks": NEW | {"algorithms.masks": 2},
        "lower layers copied": NEW | {"model.init_layers": "lower"},
        "lower layers copied, learns from them": LOWER,
        "copied, learns from lower": NEW | {"objective.layer_map": "lower"},
        "copied, learns from 1 and 4": NEW | {"objective.layer_map": "[1, 4]"},
        "no embedding term": NEW | off("embedding"),
        "no hidden term": NEW | off("hidden"),
        "no attention term": NEW | off("attention"),
        "no logits term": NEW | off("logits"),
        "no mlm term": NEW | off("mlm"),
        "logits and mlm": NEW | off(*STATES),
        "logits alone": NEW | off(*STATES, "mlm"),
        "mlm alone": NEW | off(*STATES, "logits"),
        "mlm alone, equal compute": NEW | off(*STATES, "logits") | {"times_steps": 1.83},
        "relations for attention": NEW | off("attention") | {"objective.relation": 1},
        "relations too": NEW | {"objective.relation": 1},
        "dropout 0.1": NEW | {"model.dropout": 0.1},
        "masks 25 %": NEW | {"mask.fraction": 0.25},
        "masks 40 %": NEW | MANY,
        "temperature 2": NEW | {"objective.temperature": 2},
        "temperature 4": NEW | {"objective.temperature": 4},
        "batch 64, half the steps": NEW | HALF | {"global_batch": 64},
        "batch 16, twice the steps": NEW | {"global_batch": 16, "times_steps": 2},
        "lr 1e-3": NEW | {"optim.lr": 1e-3},
        "lr 4e-3": NEW | {"optim.lr": 4e-3},
        "betas 0.9, 0.98": NEW | {"optim.betas": "[0.9, 0.98]"},
        "wsd, decay 20 %": NEW | {"optim.schedule": "wsd", "decay_share": 0.2},
        "states alone, half the steps": NEW | off("logits", "mlm") | HALF,
        "states, then logits and mlm": off(*STATES)
        | HALF
        | {"after": "states alone, half the steps", "algorithms.masks": 3},
    },
    "lower": {
        "all terms": BASE,
        "random start, old masks, 15 %": OLD,
        "mlm alone": BASE | off(*STATES, "logits"),
        "mlm alone, equal compute": BASE | off(*STATES, "logits") | {"times_steps": 1.74},
        "logits and mlm": BASE | off(*STATES),
        "states weigh 0.1": BASE | {f"objective.{term}": 0.1 for term in STATES},
        "no embedding term": BASE | off("embedding"),
        "no hidden term": BASE | off("hidden"),
        "no attention term": BASE | off("attention"),
        "no logits term": BASE | off("logits"),
        "no mlm term": BASE | off("mlm"),
        "lr 4e-3": BASE | {"optim.lr": 4e-3},
        "logits and mlm, lr 4e-3": BASE | off(*STATES) | {"optim.lr": 4e-3},
        "mlm alone, lr 4e-3": BASE | off(*STATES, "logits") | {"optim.lr": 4e-3},
    },
    "narrow": {
        "random start": NEW | {"model.init": "random"},
        "principal components": NEW,
        "random start, no states": NEW | {"model.init": "random"} | off(*STATES),
        "principal components, no states": NEW | off(*STATES),
    },
    "masks": {"new masks": ALONE, "old masks": ALONE | {"algorithms.masks": 2}},
}
STUDENTS = {"narrow": (2, 96), "masks": (4, 192)}  # layers, width; others (2, 192)
