"""Whether a token sees later ones. A causal language model that does learns nothing: it reads the target off."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import takes_any_attention
from openrlhf.engine.parameters import is_partitioned
from openrlhf.errors import UserError
from openrlhf.models.attention.choice import looks_ahead
from openrlhf.models.layout_probe import looking_only

_TO_SOMETHING_ELSE = re.compile("cross|encoder_attn|vision|visual|image|audio")  # in the name of an attention
_ROWS = [[5, 6, 7, 8], [5, 6, 7, 9]]  # alike but for the last token
_ROUNDING = 1e-2  # relative; an encoder moves by a tenth and more


def check_looks_back(config: PretrainedConfig, name: str, model: PreTrainedModel | None = None) -> None:
    """Raises UserError for a causal language model whose tokens see later ones, in whatever layout.

    Args: name: of its class. model: None: before the weights are read, when the configuration alone can tell.
    """
    if looks_ahead(config.get_text_config()) or (model is not None and _is_encoder(model)):
        raise UserError(
            f"{name} cannot be trained as a causal language model: its attention is not causal, so each token would "
            "see its own target. Give a model that is made to continue text. BERT's family is by is_decoder true in "
            "its config.json, Gemma's by use_bidirectional_attention false."
        )


def _is_encoder(model: PreTrainedModel) -> bool:
    if not takes_any_attention(type(model)):  # its attention need not say what it is
        return not any(map(is_partitioned, model.parameters())) and _first_token_moves(model)
    text_model: Any = model.get_decoder()
    flags = [
        module.is_causal
        for name, module in text_model.named_modules()
        if getattr(module, "is_causal", None) is not None and not _TO_SOMETHING_ELSE.search(name)
    ]
    return bool(flags) and not any(flags)


def _first_token_moves(model: Any) -> bool:
    """Whether the first token's log-probs are others when the last token is."""
    rows = torch.tensor(_ROWS, device=next(model.parameters()).device)
    try:
        with looking_only(model):
            one, other = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[:, 0].float()
    except Exception:  # it takes more than text, or other lengths: nothing can be said
        return False
    return bool((one - other).norm() > _ROUNDING * one.norm())
