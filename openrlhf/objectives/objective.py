"""An objective, and the registry in which each has a name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.errors import UserError
from openrlhf.named_object import named_object
from openrlhf.objectives.scorer import Scorer

Amount = Tensor | float


@dataclass(frozen=True)
class Share:
    """The part of its step window that one micro-batch adds."""

    loss: Tensor  # scalar, with a gradient: the micro-batch's part of the window's loss
    sums: dict[str, tuple[Amount, Amount]]  # by metric: a sum and the count that it is divided by, without gradients


class Objective(ABC):
    """A loss to minimise, as a sum over a step window that is divided once.

    The window's loss is the sum of all micro-batches' shares, over all ranks. So a share divides by the divisor that it
    is given, which is the sum of `weight` over the whole window, and never by something of the micro-batch's own: then
    the loss does not depend on the layout.
    """

    metrics: tuple[str, ...] = ("loss",)  # names of the sums in a Share; `loss` is one of them
    eval_sums: tuple[str, ...] = ()  # names of more sums, which evaluations alone take: `derived` makes metrics of them
    scores_tokens: bool = True  # it asks for log-probs; `token_accuracy` is then counted
    needs_window_sums: bool = False  # its loss depends on `window_sums`, in evaluations too
    needs_unit_scores: bool = False  # its loss depends on `unit_scores`
    name: str = ""  # the name by which `--train.loss` found it; empty: its class is its name

    @abstractmethod
    def weight(self, batch: MicroBatch) -> float:
        """A micro-batch's part of the window's divisor; of the whole micro-batch, also where a ring shares it."""

    def window_sums(self, batch: MicroBatch) -> tuple[float, ...]:
        """More sums over the window that its loss depends on, of the whole micro-batch as in `weight`.

        An objective that has some sets `needs_window_sums`. `scorer.window.sums` holds their totals.
        """
        return ()

    def unit_scores(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        """(U, K) numbers of each unit that the loss of every unit of the window depends on, as constants.

        An objective that has some sets `needs_unit_scores`, and `needs_window_sums`: the window is then run once more,
        before its first backward pass, and `scorer.window.unit_scores` holds those of all units.
        """
        raise NotImplementedError(f"{type(self).__name__} sets needs_unit_scores, so it gives unit_scores")

    @abstractmethod
    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        """The micro-batch's share of the window's loss.

        Args:
            scorer: what the model says about the micro-batch; one of its methods runs the model, once.
            batch: on the model's device; where a ring shares it, this rank's tokens.
            divisor: the sum of `weight` over all micro-batches of the window on all ranks.
        """

    def throw_away(self) -> None:  # noqa: B027  (most have no model)
        """A pass over a window broke off, and begins anew: what a model of the objective's own holds of it is freed."""

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """More metrics of an evaluation, worked out from the means of `metrics` and `eval_sums` over all its rows."""
        return {}


_REGISTRY: dict[str, Callable[[], Objective]] = {}
_Class = TypeVar("_Class", bound=type[Objective])


def register_objective(name: str) -> Callable[[_Class], _Class]:
    """A class decorator that gives an objective the name by which `--train.loss` finds it."""

    def register(objective: _Class) -> _Class:
        assert name not in _REGISTRY, f"there is an objective named {name} already"
        _REGISTRY[name] = objective
        return objective

    return register


def objective_named(name: str) -> Objective:
    """The objective of that name, or of `module:Name`, which is imported.

    Raises UserError where there is none.
    """
    if name not in _REGISTRY and ":" not in name:
        raise UserError(
            f"--train.loss {name} is none of {', '.join(sorted(_REGISTRY))}. Give one of them, or module:Name for an "
            "objective of your own."
        )
    base: Any = Objective
    objective: Objective = _REGISTRY[name]() if name in _REGISTRY else named_object(name, base, "--train.loss")
    objective.name = name
    return objective


def name_of(objective: Objective) -> str:
    """The name in the identity of a run: a resume by another objective is another run."""
    return objective.name or f"{type(objective).__module__}:{type(objective).__qualname__}"
