"""The objectives: each says what is minimised and what it is divided by. One file an objective, one registry."""

from openrlhf.objectives.objective import Objective, Share, name_of, objective_named, register_objective
from openrlhf.objectives.preference import PreferenceObjective
from openrlhf.objectives.reward import RewardObjective
from openrlhf.objectives.scorer import NO_AUX_LOSS, NOTHING_OF_THE_WINDOW, AuxLossSettings, Scorer, WindowScores
from openrlhf.objectives.sft import DFTObjective, SFTObjective

__all__ = [
    "NOTHING_OF_THE_WINDOW",
    "NO_AUX_LOSS",
    "AuxLossSettings",
    "DFTObjective",
    "Objective",
    "PreferenceObjective",
    "RewardObjective",
    "SFTObjective",
    "Scorer",
    "Share",
    "WindowScores",
    "name_of",
    "objective_named",
    "register_objective",
]
