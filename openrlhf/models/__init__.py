"""From token ids to log-probs of target tokens to a loss. Needs no flash-attn, no GPU and no DeepSpeed."""

from openrlhf.models.actor import Actor, TargetScores
from openrlhf.models.losses import SFTLoss, weighted_nll_sum
from openrlhf.models.moe import expert_leaf_modules

__all__ = ["Actor", "SFTLoss", "TargetScores", "expert_leaf_modules", "weighted_nll_sum"]
