"""The typed configuration of a training run; `parser` and `yaml` read and write it."""

from fitb.config.recipe import AlgorithmsConfig as AlgorithmsConfig
from fitb.config.recipe import Geometry as Geometry
from fitb.config.recipe import MaskConfig as MaskConfig
from fitb.config.recipe import ModelConfig as ModelConfig
from fitb.config.recipe import ObjectiveConfig as ObjectiveConfig
from fitb.config.recipe import OptimConfig as OptimConfig
from fitb.config.schema import CheckpointConfig as CheckpointConfig
from fitb.config.schema import Config as Config
from fitb.config.schema import DataConfig as DataConfig
from fitb.config.schema import EvalConfig as EvalConfig
from fitb.config.schema import SpeedConfig as SpeedConfig
from fitb.config.schema import StopConfig as StopConfig
from fitb.config.schema import TrackConfig as TrackConfig
