"""Adapters merged into their base model: `python -m openrlhf.cli.lora_combiner FLAGS`."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf.cli.entry import run_command
from openrlhf.config import parse_config
from openrlhf.config.merge_settings import MergeConfig


def main(argv: Sequence[str]) -> None:
    combine(parse_config(MergeConfig, argv))


def combine(config: MergeConfig) -> None:
    """Writes the merged model in safetensors, with its tokenizer. Raises UserError where they do not fit."""
    from openrlhf.models.loading import PARAM_DTYPES
    from openrlhf.run.merge import merge_adapters

    dtype = PARAM_DTYPES[config.param_dtype] if config.param_dtype else None
    merge_adapters(config.model_path, config.lora_paths, config.output_path, dtype)
    print(f"the merged model is in {config.output_path}.")


if __name__ == "__main__":
    run_command(main)
