"""What a model's config.json says of the function that its weights compute."""

from __future__ import annotations

import json
from typing import Any

from transformers import PretrainedConfig

# Keys that say nothing of the function, are settings of the run, or are changed by an export of ours.
_NOT_COMPARED = {"_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version"}
_NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "mean", "std"}


def values_of_function(config: PretrainedConfig) -> dict[str, Any]:
    """The values that two models must share to compute one function, as JSON holds them; of a composite's text part.

    No path and no layout changes them.
    """
    values = json.loads(config.get_text_config().to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _NOT_COMPARED}
