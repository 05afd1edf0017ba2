"""The settings that the user gives: names, defaults, help, checks and rules of a resume of every setting.

command line and files → sources.py → synonyms.py → kinds.py (values) → settings.py → checks.py

`settings.py` declares the settings of each command, and `pair_settings.py` those of the commands on pairs. Nothing else
here knows a command: functions take the root, a type, or a configuration, its instance (`schema.py`).
"""

from openrlhf.config.checks import check_config
from openrlhf.config.generate_settings import GenerateConfig, PromptConfig, SamplingConfig
from openrlhf.config.help import print_help
from openrlhf.config.iterate_settings import RejectionConfig
from openrlhf.config.pair_settings import DPOConfig, InspectDPOConfig, PairDataConfig, RMConfig
from openrlhf.config.parse import nearest_root, parse_config
from openrlhf.config.schema import shown_values
from openrlhf.config.select_settings import ScoreConfig, ScoreSettings, SelectConfig, SelectSettings
from openrlhf.config.serve_settings import ServeConfig
from openrlhf.config.settings import (
    AdamConfig,
    CkptConfig,
    DataConfig,
    DeepspeedConfig,
    EvalConfig,
    InspectConfig,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    MuonConfig,
    PrepareConfig,
    SFTConfig,
    TrainConfig,
    TrainingConfig,
    WandbConfig,
)
from openrlhf.config.written import as_namespace, from_namespace, write_resolved

__all__ = [
    "AdamConfig",
    "CkptConfig",
    "DPOConfig",
    "DataConfig",
    "DeepspeedConfig",
    "EvalConfig",
    "GenerateConfig",
    "InspectConfig",
    "InspectDPOConfig",
    "LoggerConfig",
    "LoraConfig",
    "ModelConfig",
    "MuonConfig",
    "PairDataConfig",
    "PrepareConfig",
    "PromptConfig",
    "RMConfig",
    "RejectionConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScoreConfig",
    "ScoreSettings",
    "SelectConfig",
    "SelectSettings",
    "ServeConfig",
    "TrainConfig",
    "TrainingConfig",
    "WandbConfig",
    "as_namespace",
    "check_config",
    "from_namespace",
    "nearest_root",
    "parse_config",
    "print_help",
    "shown_values",
    "write_resolved",
]
