"""An adapter merged into its base model: `python -m openrlhf.cli.lora_combiner FLAGS`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import parse_config
from openrlhf.config.merge_settings import MergeConfig


def main(argv: Sequence[str]) -> None:
    combine(parse_config(MergeConfig, argv))


def combine(config: MergeConfig) -> None:
    """Writes the merged model in safetensors, with its tokenizer. Raises UserError where the two do not fit."""
    from peft import PeftConfig, PeftModel, TaskType
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from openrlhf.checkpoint.export import export_model
    from openrlhf.datasets.tokenizer import get_tokenizer
    from openrlhf.errors import UserError, first_line_of
    from openrlhf.models.loading import PARAM_DTYPES

    dtype = PARAM_DTYPES[config.param_dtype] if config.param_dtype else "auto"
    try:
        is_reward_model = PeftConfig.from_pretrained(config.lora_path).task_type == TaskType.SEQ_CLS
        kind = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
        labels = {"num_labels": 1} if is_reward_model else {}
        base = kind.from_pretrained(config.model_path, dtype=dtype, **labels)
        merged = PeftModel.from_pretrained(base, config.lora_path).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        problem = f"{config.lora_path} cannot be merged into {config.model_path}: {first_line_of(error)}"
        raise UserError(problem) from None
    export_model(merged, get_tokenizer(config.model_path), config.output_path)
    print(f"the merged model is in {config.output_path}.")


if __name__ == "__main__":
    run_command(main)
