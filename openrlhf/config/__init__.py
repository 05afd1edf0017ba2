"""What the user asked for: names, defaults, help, checks and rules of a resume of every setting.

command line and files → sources.py → synonyms.py → kinds.py (values) → roots.py → checks.py

`roots.py` declares the settings of each command. Nothing else here knows a command: functions take the root, a type,
or a configuration, its instance (`schema.py`).
"""

from openrlhf.config.checks import check_config
from openrlhf.config.help import print_help
from openrlhf.config.namespace import as_namespace, from_namespace
from openrlhf.config.parse import parse_config
from openrlhf.config.resolved import write_resolved
from openrlhf.config.roots import InspectConfig, SFTConfig
from openrlhf.config.schema import shown_values
from openrlhf.config.settings import (
    AdamConfig,
    CkptConfig,
    DataConfig,
    DeepspeedConfig,
    EvalConfig,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    MuonConfig,
    TrainConfig,
    TrainingConfig,
    WandbConfig,
)

__all__ = [
    "AdamConfig",
    "CkptConfig",
    "DataConfig",
    "DeepspeedConfig",
    "EvalConfig",
    "InspectConfig",
    "LoggerConfig",
    "LoraConfig",
    "ModelConfig",
    "MuonConfig",
    "SFTConfig",
    "TrainConfig",
    "TrainingConfig",
    "WandbConfig",
    "as_namespace",
    "check_config",
    "from_namespace",
    "parse_config",
    "print_help",
    "shown_values",
    "write_resolved",
]
