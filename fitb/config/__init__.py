"""The typed configuration; `yaml`, `parser` and what they need are modules of their own."""

from fitb.config.schema import (
    AlgorithmsConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    Geometry,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SpeedConfig,
    StopConfig,
    TrackConfig,
)

__all__ = [
    "AlgorithmsConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "Geometry",
    "MaskConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "SpeedConfig",
    "StopConfig",
    "TrackConfig",
]
