"""What a model cannot hold, found from its configuration before any weight is read."""

from __future__ import annotations

from transformers import PretrainedConfig

from openrlhf.errors import UserError

_POSITIONS = "max_position_embeddings"


def check_positions(config: PretrainedConfig, num_tokens: int, sample_name: str) -> None:
    """Raises UserError where a sample, the longest one, has more tokens than the model has positions.

    Args:
        num_tokens: of that sample.
        sample_name: where it stands, for the message.
    """
    num_positions = getattr(config.get_text_config(), _POSITIONS, None)
    if num_positions and 0 < num_positions < num_tokens:
        raise UserError(
            f"{sample_name} has {num_tokens:,} tokens, the model {num_positions:,} positions ({_POSITIONS} in its "
            f"config.json): give --data.max_len {num_positions}, which drops longer samples, or cuts them with "
            "--data.overlong truncate."
        )
