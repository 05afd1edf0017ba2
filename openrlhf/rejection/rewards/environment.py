"""A task set of verifiers as a reward: the task that has the row's prompt judges the answer, by its own rewards."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openrlhf.errors import first_line_of, how_to_install
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.reward import (
    NO_VERDICT,
    CallFailed,
    NoReward,
    RewardVerdict,
    awaited,
    text_of,
    verdicts_of,
)

VERIFIERS = "verifiers:"
_NO_TASK = "no task has this prompt"


def module_file(name: str) -> Path:
    """The file of the module that `verifiers:ID` names, as verifiers finds it; an empty path where there is none."""
    module = name.removeprefix(VERIFIERS).rpartition("/")[2].partition("@")[0].replace("-", "_").lower()
    spec = importlib.util.find_spec(module)
    return Path(spec.origin or "") if spec is not None else Path()


def load_environment(name: str) -> Callable[[Sequence[Row]], list[RewardVerdict]]:
    """The judge that `verifiers:ID` names. Raises NoReward."""
    try:
        import verifiers.v1 as vf
        from verifiers.v1.state import state_cls
    except ImportError:
        raise NoReward(f"it needs a package that is not installed: {how_to_install('verifiers')}") from None
    identity = name.removeprefix(VERIFIERS)
    try:
        taskset = vf.load_taskset(vf.taskset_config_type(identity)(id=identity))
        tasks = dict(_by_text(taskset)) if taskset.bounded else {}
    except Exception as error:  # of a module of the user's
        raise NoReward(f"the task set cannot be loaded: {type(error).__name__}: {first_line_of(error)}") from error
    if not tasks:
        raise NoReward("the task set has no tasks, or tasks without end: give one whose tasks can be listed")

    async def judged(row: Row) -> RewardVerdict:
        task = tasks.get(_key(row["prompt"]))
        if task is None:
            return RewardVerdict(None, _NO_TASK)
        trace = _trace(vf, task, state_cls(type(task))(), row)
        try:
            await task.score(trace)
        except vf.TaskError as error:
            cause = error.__cause__ or error
            raise CallFailed(f"{type(cause).__name__}: {first_line_of(cause)}") from error
        given = [reward for reward in trace.rewards.values() if reward is not None]
        return verdicts_of(trace.reward, 1)[0] if given else RewardVerdict(None, NO_VERDICT)

    return lambda rows: [awaited(judged(row)) for row in rows]


def _prompt_of(data: Any) -> Any:
    """A task's prompt as a row has it: text, or messages."""
    if isinstance(data.prompt, str) and not data.system_prompt:
        return data.prompt
    prompt = data.prompt if isinstance(data.prompt, list) else [{"role": "user", "content": data.prompt_text}]
    messages = [one if isinstance(one, dict) else {"role": one.role, "content": one.content} for one in prompt]
    return [{"role": "system", "content": data.system_prompt}, *messages] if data.system_prompt else messages


def _by_text(taskset: Any) -> Iterator[tuple[str, Any]]:
    for task in taskset:
        with suppress(CallFailed):  # its prompt is more than text, which no row's is
            yield _key(_prompt_of(task.data)), task


def _key(prompt: Any) -> str:
    return text_of(prompt).strip()


def _trace(vf: Any, task: Any, state: Any, row: Row) -> Any:
    """The conversation as verifiers records one: the prompt's messages, and the answer, which a model gave."""
    prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
    messages = [*prompt, {"role": "assistant", "content": row["response"]}]
    nodes = [
        vf.MessageNode(parent=place - 1 if place else None, message=message, sampled=place == len(prompt))
        for place, message in enumerate(messages)
    ]
    recorded = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=recorded, agent=agent, nodes=nodes, state=state)
