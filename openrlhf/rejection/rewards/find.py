"""What `--score.reward` names → rewards."""

from __future__ import annotations

from collections import Counter
from typing import Any

from openrlhf.config import ScoreSettings
from openrlhf.config.disk import begins_as_address, local_path, parts_of, without_secrets
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


def check_rewards(settings: ScoreSettings, label: Any, source: object) -> None:
    """Before answers are asked for. Args: label, source: of the first row, and its file.

    Raises UserError where a function cannot be loaded, or there is no label that a reward compares with.
    """
    rewards = find_rewards(settings)
    check_label(rewards, label, source)
    check_functions(rewards)


def check_functions(rewards: list[Reward]) -> None:
    """Raises UserError where a function cannot be loaded. Those that can are closed, and judge no more."""
    functions: list[Reward] = [reward for reward in rewards if isinstance(reward, FunctionReward)]
    try:
        start_all(functions)
    finally:
        close_all(functions)


def check_label(rewards: list[Reward], label: Any, source: object) -> None:
    for reward in rewards:
        if reward.needs_label and label is None:
            raise UserError(
                f"--score.reward {reward.name} compares with a label, and the rows of {source} have none: name its "
                "column by --data.label_key where they are answered."
            )


def close_all(rewards: list[Reward]) -> None:
    for reward in rewards:
        reward.close()


def _find(name: str, settings: ScoreSettings) -> Reward:
    if name == "exact":
        return ExactReward()
    if begins_as_address(name):
        if "@" in name.split("/")[2]:
            address = without_secrets(name)
            raise UserError(f"--score.reward {address}: a login before the address is sent to no server: leave it out.")
        return ServerReward(name, settings.timeout_seconds, settings.batch_size or _ROWS_A_CALL_OF_A_SERVER)
    if name == MATH or name.startswith(VERIFIERS) or name.rpartition(":")[0].endswith(".py"):
        return FunctionReward(name, settings.timeout_seconds, settings.batch_size or 1)
    if (local_path(name) / "config.json").is_file():
        return ModelReward(name, settings)
    raise UserError(
        f"--score.reward {without_secrets(name)} is no reward: give file.py:function, math, exact, verifiers:ID, the "
        "folder of a reward model (with its config.json) or http://…/get_reward."
    )
