"""From token ids to the scores of target tokens. It needs no flash-attn, no GPU and no DeepSpeed."""

from openrlhf.models.actor import Actor
from openrlhf.models.losses import SFTLoss
from openrlhf.models.moe import expert_leaf_modules
from openrlhf.models.reward_model import RewardModel
from openrlhf.models.token_scorer import TargetScores

__all__ = ["Actor", "RewardModel", "SFTLoss", "TargetScores", "expert_leaf_modules"]
