"""Models: loading, attention, scoring of target tokens or of whole sequences, losses."""

from openrlhf.models.actor import Actor
from openrlhf.models.losses import SFTLoss
from openrlhf.models.moe import expert_leaf_modules
from openrlhf.models.prepared_model import PreparedModel
from openrlhf.models.reward_model import RewardModel, SequenceScores, get_llm_for_sequence_regression
from openrlhf.models.reward_statistics import note_reward_statistics
from openrlhf.models.token_scorer import TargetScores

__all__ = [
    "Actor",
    "PreparedModel",
    "RewardModel",
    "SFTLoss",
    "SequenceScores",
    "TargetScores",
    "expert_leaf_modules",
    "get_llm_for_sequence_regression",
    "note_reward_statistics",
]
