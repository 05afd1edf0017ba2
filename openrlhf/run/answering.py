"""Prompts that the model answers while it trains: a callback, which shows the answers and has them judged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PretrainedConfig

from openrlhf.checkpoint.model_settings import base_of, end_token_ids
from openrlhf.config import EvalConfig, PromptConfig, ScoreSettings, TrainingConfig
from openrlhf.config.disk import without_secrets
from openrlhf.engine.parameters import is_partitioned
from openrlhf.errors import UserError, first_line_of
from openrlhf.exit_codes import RankLost, StoppedAlone
from openrlhf.models import Actor
from openrlhf.models.limits import num_positions, padding_id
from openrlhf.parallel.collectives import any_rank, gather_objects, gather_problems
from openrlhf.parallel.groups import ProcessGroups
from openrlhf.rejection.engines.encoding import PromptEncoder, PromptRefused, padded_left
from openrlhf.rejection.prompts import Prompt, Prompts
from openrlhf.rejection.rewards.find import check_functions, find_rewards
from openrlhf.rejection.rewards.reward import Reward, RewardVerdict
from openrlhf.tracking.metrics_file import ANSWERS_FILE, read_records
from openrlhf.trainer import Callback, Trainer
from openrlhf.trainer.callbacks.callback import CannotBegin
from openrlhf.trainer.callbacks.preemption import is_asked_to_leave
from openrlhf.trainer.shortage import has_memory_for

_T = TypeVar("_T")
_JUDGE = "--eval.prompts_reward"
_CANNOT_GO_ON = (
    "memory ran out while answering --eval.prompts, and ranks that share weights cannot leave their collectives. "
    "Checkpoints are intact: go on with --ckpt.load_enable and a lower --eval.prompts_max_new_tokens, or without "
    "--eval.prompts."
)
_ROWS_AT_ONCE = 32  # prompts that a rank answers together, at the most

log = logging.getLogger(__name__)


class Answering(Callback):
    """Has the model answer prompts with its likeliest tokens, on all ranks together, by `Actor.generate`.

    The answers are shown by `Trainer.log_answers`. A judge's mean verdict is logged as `answer_reward` with the record
    of the step.
    """

    def __init__(self, config: TrainingConfig, tokenizer: Any, model_config: PretrainedConfig):
        """Raises UserError where a prompt cannot be read or is too long, or the judge cannot be had."""
        settings = config.eval
        data = PromptConfig(
            dataset=settings.prompts or "",
            input_template=config.data.input_template,
            apply_chat_template=config.data.apply_chat_template,
            tokenizer_chat_template=config.data.tokenizer_chat_template,
        )
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer, data.tokenizer_chat_template, model_config)
        self._every_steps, self._max_new_tokens = settings.prompts_steps, settings.prompts_max_new_tokens
        self._prompts = [(prompt, self._ids_of(number, prompt)) for number, prompt in enumerate(Prompts(data), start=1)]
        self._check_lengths(num_positions(model_config))
        self._judge = _judge_of(settings)
        self._last_step, self._rows_at_once = -1, _ROWS_AT_ONCE
        self._file = Path(config.ckpt.output_dir, ANSWERS_FILE)

    def on_run_begin(self, trainer: Trainer) -> None:
        if self._judge is not None:
            with trainer.strategy.watchdog.long_phase("starting the judge of --eval.prompts_reward"):
                _on_rank_0(trainer, self._judge.start, CannotBegin)
        if trainer.progress.left_early and self._is_due(trainer) and not self._has_answered(trainer):
            self._answer(trainer)

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """A run that is asked to leave answers when it goes on: until SIGKILL there is time for a save."""
        if self._is_due(trainer) and not is_asked_to_leave(trainer.strategy.groups.control):
            self._answer(trainer)

    def on_run_end(self, trainer: Trainer) -> None:
        if trainer.progress.optimizer_step != self._last_step and not self._has_answered(trainer):
            self._answer(trainer)

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._judge is not None:
            self._judge.close()

    def _is_due(self, trainer: Trainer) -> bool:
        return self._every_steps > 0 and trainer.progress.optimizer_step % self._every_steps == 0

    def _has_answered(self, trainer: Trainer) -> bool:
        """After this step, before the run left: it may have been asked to while it answered."""
        is_there = trainer.strategy.is_rank_0() and self._file.is_file()
        steps = {one["global_step"] for one in read_records(self._file)} if is_there else set()
        return gather_objects(trainer.progress.optimizer_step in steps, trainer.strategy.groups.control)[0]

    def _ids_of(self, number: int, prompt: Prompt) -> list[int]:
        try:
            return list(self._encoder.encode(prompt))
        except PromptRefused as refused:
            raise UserError(f"--eval.prompts: prompt {number} cannot be encoded: {refused.reason}.") from None

    def _check_lengths(self, max_positions: int | None) -> None:
        for number, (_, ids) in enumerate(self._prompts, start=1):
            if not ids:
                raise UserError(f"--eval.prompts: prompt {number} is empty.")
            if max_positions is not None and len(ids) + self._max_new_tokens > max_positions:
                raise UserError(
                    f"--eval.prompts: prompt {number} has {len(ids):,} tokens, and with --eval.prompts_max_new_tokens "
                    f"{self._max_new_tokens:,} it passes the {max_positions:,} positions of the model. Lower that, or "
                    "leave the prompt out."
                )

    def _answer(self, trainer: Trainer) -> None:
        """All ranks call, and leave together: a judge may take its time."""
        self._last_step = trainer.progress.optimizer_step
        with trainer.strategy.watchdog.long_phase(f"answering --eval.prompts after step {self._last_step}"):
            self._answer_together(trainer)

    def _answer_together(self, trainer: Trainer) -> None:
        groups = trainer.strategy.groups
        model: Any = trainer.model
        was_training = model.training
        model.eval()
        mine, problem = _attempt(lambda: self._answers_of(model, groups))
        model.train(was_training)
        _raise_together(trainer, problem and f"--eval.prompts: {problem}")
        if any_rank(mine is None, groups.control):
            trainer.strategy.print(
                f"--eval.prompts are not answered after step {self._last_step}: a rank has no memory for a single "
                "prompt at a time. What helps: a lower --eval.prompts_max_new_tokens."
            )
            return
        of_ranks = gather_objects(mine, groups.control)
        _on_rank_0(trainer, lambda: self._show(trainer, dict(answer for answers in of_ranks for answer in answers)))

    def _answers_of(self, model: Actor, groups: ProcessGroups) -> list[tuple[int, tuple[str, str]]] | None:
        """Number, text and end of each answer of this rank; None where memory holds no single prompt's.

        All ranks answer equally many prompts, and make equally many calls of a model that they share.
        """
        share = -(-len(self._prompts) // groups.data_size)
        numbers = [(groups.data_rank * share + place) % len(self._prompts) for place in range(share)]
        found: list[tuple[int, tuple[str, str]]] = []
        while batch := numbers[len(found) : len(found) + self._rows_at_once]:
            answers: list[tuple[str, str]] = []
            if has_memory_for(lambda: answers.extend(self._generated(model, [self._prompts[one][1] for one in batch]))):  # noqa: B023
                found += zip(batch, answers, strict=True)
            elif any(map(is_partitioned, model.parameters())) or groups.tensor_size > 1:
                raise StoppedAlone(_CANNOT_GO_ON)
            elif len(batch) == 1:
                return None
            else:
                self._rows_at_once = len(batch) // 2
                log.warning(
                    "Memory ran out for %s of --eval.prompts at once: %s at most from now on.",
                    len(batch),
                    self._rows_at_once,
                )
        return found

    def _generated(self, model: Actor, prompts: Sequence[list[int]]) -> Iterator[tuple[str, str]]:
        base = base_of(model.model)
        pad_id = padding_id(base.config, self._tokenizer.pad_token_id)
        ids, mask = padded_left(prompts, pad_id)
        end_ids = end_token_ids(self._tokenizer, base)  # now: the data have set the template
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            use_cache=True,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=end_ids,
            pad_token_id=pad_id,
        )
        for prompt, row in zip(prompts, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in end_ids), None)
            yield self._encoder.decode(prompt, row[:end]), "length" if end is None else "stop"

    def _show(self, trainer: Trainer, answers: dict[int, tuple[str, str]]) -> None:
        rows = [
            _row(prompt, *answers[number], trainer.progress.optimizer_step)
            for number, (prompt, _) in enumerate(self._prompts)
        ]
        if self._judge is not None:
            self._add_verdicts(self._judge, rows)
            given = [row["reward"] for row in rows if row["reward"] is not None]
            trainer.log({"answers_judged": len(given)} | ({"answer_reward": sum(given) / len(given)} if given else {}))
        trainer.log_answers(rows)

    def _add_verdicts(self, judge: Reward, rows: list[dict[str, Any]]) -> None:
        judged = [prompt.columns | row for row, (prompt, _) in zip(rows, self._prompts, strict=True)]
        try:
            verdicts = judge.judge(judged)
        except UserError as error:  # a server that is gone for a while is no reason to end a training
            reason = error.problems[0].replace("--score.reward", _JUDGE)
            log.warning("The answers after step %s are not judged: %s", self._last_step, reason)
            verdicts = [RewardVerdict(None, reason)] * len(rows)
        for row, verdict in zip(rows, verdicts, strict=True):
            row["reward"] = verdict.value
            if verdict.value is None:
                row["reason"] = verdict.reason


def _on_rank_0(trainer: Trainer, work: Callable[[], None], kind: type[UserError] = UserError) -> None:
    """All ranks call and leave together, or raise together what rank 0 raises."""
    _, problem = _attempt(work) if trainer.strategy.is_rank_0() else (None, None)
    words = problem and problem.replace("--score.reward", _JUDGE)
    _raise_together(trainer, words if not words or _JUDGE in words else f"{_JUDGE}: {words}", kind)


def _attempt(work: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """What the work gives, or what went wrong: the ranks are to hear of it before one of them leaves."""
    try:
        return work(), None
    except RankLost:  # the other ranks are in a collective, and hear of nothing
        raise
    except Exception as error:  # of a model, or of a judge, which may be the user's own
        return None, first_line_of(error)


def _raise_together(trainer: Trainer, problem: str | None, kind: type[UserError] = UserError) -> None:
    if problems := gather_problems(problem, trainer.strategy.groups.control):
        raise kind(*problems)


def _row(prompt: Prompt, response: str, finish_reason: str, optimizer_step: int) -> dict[str, Any]:
    return {
        "global_step": optimizer_step,
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.content,
        "response": response,
        "finish_reason": finish_reason,
    }


def _judge_of(settings: EvalConfig) -> Reward | None:
    if settings.prompts_reward is None:
        return None
    asked = ScoreSettings(reward=settings.prompts_reward)
    try:
        first, *more = find_rewards(asked)
        if os.environ.get("RANK", "0") == "0":  # which judges; a user's file may load a model, and ranks share a GPU
            check_functions(find_rewards(asked))
    except UserError as error:
        raise UserError(*(problem.replace("--score.reward", _JUDGE) for problem in error.problems)) from None
    if more:
        said = without_secrets(settings.prompts_reward)
        raise UserError(f"--eval.prompts_reward {said} names several judges: name one.")
    return first
