"""TRL's interface to supervised fine-tuning: a script that imports from here trains with openrlhf."""

from typing import NoReturn

from transformers.trainer_utils import get_last_checkpoint

from openrlhf.compat.trl.adapters import get_peft_config
from openrlhf.compat.trl.arguments import TrlModelConfig as ModelConfig
from openrlhf.compat.trl.arguments import TrlScriptArguments as ScriptArguments
from openrlhf.compat.trl.arguments import TrlSFTConfig as SFTConfig
from openrlhf.compat.trl.chat_format import clone_chat_template, setup_chat_format
from openrlhf.compat.trl.loading import get_kbit_device_map, get_quantization_config
from openrlhf.compat.trl.mixture import TrlDatasetConfig as DatasetConfig
from openrlhf.compat.trl.mixture import TrlMixtureConfig as DatasetMixtureConfig
from openrlhf.compat.trl.mixture import get_dataset
from openrlhf.compat.trl.parser import TrlParser
from openrlhf.compat.trl.trainer import TrlSFTTrainer as SFTTrainer

__all__ = [
    "DatasetConfig",
    "DatasetMixtureConfig",
    "ModelConfig",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "TrlParser",
    "clone_chat_template",
    "get_dataset",
    "get_kbit_device_map",
    "get_last_checkpoint",
    "get_peft_config",
    "get_quantization_config",
    "setup_chat_format",
]


def __getattr__(name: str) -> NoReturn:
    """Asked for a name that is not above. Raises ImportError for a trainer, its arguments or a collator of TRL."""
    if not (name.endswith(("Trainer", "Config")) or name.startswith("DataCollator")):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    command = "train_dpo" if name.startswith("DPO") else "train_rm" if name.startswith("Reward") else None
    remedy = f"use python -m openrlhf.cli.{command}" if command else "SFTTrainer and SFTConfig are"
    raise ImportError(f"{name} of TRL is not in {__name__}: {remedy}.", name=__name__)
