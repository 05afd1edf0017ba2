"""The root of every command's settings."""

from openrlhf.config.generate_settings import GenerateConfig
from openrlhf.config.pair_settings import DPOConfig, RMConfig
from openrlhf.config.select_settings import ScoreConfig, SelectConfig
from openrlhf.config.settings import InspectConfig, SFTConfig

ROOTS = (SFTConfig, InspectConfig, RMConfig, DPOConfig, GenerateConfig, ScoreConfig, SelectConfig)
