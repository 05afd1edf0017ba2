"""What the user asked for: names, defaults, help and checks of every setting.

command line and files → sources.py → synonyms.py → kinds.py (values) → settings.py → checks.py
"""

from openrlhf.config.checks import check_config
from openrlhf.config.namespace import as_namespace, from_namespace
from openrlhf.config.parse import parse_sft_config
from openrlhf.config.resolved import write_resolved
from openrlhf.config.schema import values_to_show
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
    SFTConfig,
    TrainConfig,
    WandbConfig,
)

__all__ = [
    "AdamConfig",
    "CkptConfig",
    "DataConfig",
    "DeepspeedConfig",
    "EvalConfig",
    "LoggerConfig",
    "LoraConfig",
    "ModelConfig",
    "MuonConfig",
    "SFTConfig",
    "TrainConfig",
    "WandbConfig",
    "as_namespace",
    "check_config",
    "from_namespace",
    "parse_sft_config",
    "values_to_show",
    "write_resolved",
]
