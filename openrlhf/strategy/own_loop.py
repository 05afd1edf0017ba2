"""What a loop of the user's own calls for each micro-batch: backward, and the update after a step's last one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from openrlhf.checkpoint.optimizer_states import problem_of_state
from openrlhf.engine.trained_model import Trainable, TrainedModel
from openrlhf.strategy.script_names import ScriptNames


class OwnLoop(ScriptNames):
    """The part of `DeepspeedStrategy` that a script steps with where no trainer does."""

    def backward(self, loss: Tensor, model: Trainable, optimizer: Any = None, **kwargs: Any) -> None:
        """Backward of a mean loss, in a loop of the user's own.

        The means of `accumulated_gradient` micro-batches and of all ranks are averaged, as DeepSpeed does. Each model
        counts its own.

        Raises UserError where micro-batches do not make a step of `train_batch_size` samples.
        """
        trained = self.trained_of(model)
        trained.num_backwards += 1
        with trained.micro_batch(self._ends_step(trained)):
            trained.engine.backward(loss / self.micro_batches_a_step)

    def optimizer_step(
        self, optimizer: Any, model: Trainable, scheduler: Any, name: str = "model", **kwargs: Any
    ) -> None:
        """After each `backward` of a loop of the user's own: an update after every `accumulated_gradient`-th."""
        trained = self.trained_of(model)
        if self._ends_step(trained):
            trained.step()
            is_first = trained.num_backwards == self.micro_batches_a_step
            if is_first and (problem := problem_of_state(trained.engine)):  # a save may come hours later
                self.print(f"warning: {problem}")

    def _ends_step(self, trained: TrainedModel) -> bool:
        """Whether the model's last `backward` was that of a step's last micro-batch."""
        return trained.num_backwards % self.micro_batches_a_step == 0
