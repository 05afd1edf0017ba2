"""What `--score.reward` names → rewards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from openrlhf.config import ScoreSettings
from openrlhf.config.disk import parts_of
from openrlhf.errors import UserError
from openrlhf.rejection.rewards.environment import VERIFIERS
from openrlhf.rejection.rewards.exact_reward import ExactReward
from openrlhf.rejection.rewards.function_reward import FunctionReward
from openrlhf.rejection.rewards.functions import MATH
from openrlhf.rejection.rewards.model_reward import ModelReward
from openrlhf.rejection.rewards.reward import Reward
from openrlhf.rejection.rewards.server_reward import ServerReward

_ROWS_A_CALL_OF_A_SERVER = 64


def find_rewards(settings: ScoreSettings) -> list[Reward]:
    """The rewards in their order, not started; equal names get a number. Raises UserError of a name that is none."""
    rewards = [_find(name, settings) for name in parts_of(settings.reward)]
    times: Counter[str] = Counter()
    for reward in rewards:
        times[reward.name] += 1
        if times[reward.name] > 1:
            reward.name = f"{reward.name}_{times[reward.name]}"
    return rewards


def start_all(rewards: list[Reward]) -> None:
    for reward in rewards:
        reward.start()


def close_all(rewards: list[Reward]) -> None:
    for reward in rewards:
        reward.close()


def _find(name: str, settings: ScoreSettings) -> Reward:
    if name == "exact":
        return ExactReward()
    if name.startswith(("http://", "https://")):
        return ServerReward(name, settings.timeout_seconds, settings.batch_size or _ROWS_A_CALL_OF_A_SERVER)
    if name == MATH or name.startswith(VERIFIERS) or name.rpartition(":")[0].endswith(".py"):
        return FunctionReward(name, settings.timeout_seconds, settings.batch_size or 1)
    if (Path(name).expanduser() / "config.json").is_file():
        return ModelReward(name, settings)
    raise UserError(
        f"--score.reward {name} is no reward: give file.py:function, math, exact, verifiers:ID, the folder of a reward "
        "model (with its config.json) or http://…/get_reward."
    )
