"""A loss that a script gives a trainer otherwise than as an objective is refused: nothing would read it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf.batching import StepWindowLoader
from openrlhf.errors import UserError
from openrlhf.objectives import SFTObjective
from openrlhf.trainer import DPOTrainer, RewardModelTrainer, SFTTrainer

LOSSES = ["loss_fn", "concatenated_forward", "_get_batch_logps", "packed_samples_forward", "training_step"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [(SFTTrainer, "--train.loss module:Name"), (DPOTrainer, "--model.loss_type"), (RewardModelTrainer, "loss=")],
)
def test_a_loss_that_is_set_is_refused(kind: type, remedy: str, name: str) -> None:
    trainer = kind.__new__(kind)
    with pytest.raises(UserError) as caught:
        setattr(trainer, name, print)
    assert f"{kind.__name__} is given {name} of its own" in str(caught.value)
    assert f"{kind.__name__}(objective=…)" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (SFTTrainer, dict.fromkeys(("optim", "eval_dataloader"))),
        (RewardModelTrainer, dict.fromkeys(("optim", "eval_dataloader", "tokenizer"))),
    ],
)
def test_a_subclass_with_such_a_method_is_refused(kind: Any, given: dict[str, None], name: str) -> None:
    base = type("Mine", (kind,), {name: lambda self, *given: None, "my_own": lambda self: None})
    loader = StepWindowLoader.__new__(StepWindowLoader)
    loader.dataset = SimpleNamespace(unit=None)  # of pairs, as far as a look can tell
    model, strategy = SimpleNamespace(config=SimpleNamespace()), SimpleNamespace(train_batch_size=1)
    with pytest.raises(UserError, match=f"Yours is given {name} of its own, which nothing here reads"):
        type("Yours", (base,), {})(
            model=model,
            strategy=strategy,
            train_dataloader=loader,
            scheduler=None,
            objective=SFTObjective(),
            **given,
        )


@pytest.mark.parametrize(("name", "argument"), [("epochs", "max_epochs"), ("beta", "beta")])
def test_a_value_of_the_constructor_is_not_set_later(name: str, argument: str) -> None:
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.max_epochs, trainer._beta = 2, 2
    setattr(trainer, name, 2)
    with pytest.raises(UserError) as caught:
        setattr(trainer, name, 1)
    assert f"{name} is set to 1 on a trainer that was built with 2" in str(caught.value)
    assert f"give DPOTrainer({argument}=1)" in str(caught.value)
    other = SFTTrainer.__new__(SFTTrainer)
    other.beta = 0.5  # nothing of ours


def test_a_value_that_a_fit_of_ones_own_might_have_read_is_refused_where_it_calls_ours() -> None:
    trainer = type("Mine", (DPOTrainer,), {"fit": lambda self: None})
    mine = trainer.__new__(trainer)
    mine.max_epochs, mine._beta = 2, 2
    mine.beta = 1
    with pytest.raises(UserError, match="beta is set to 1 on a trainer that was built with 2"):
        mine._check_overrides()


def test_a_loop_of_ones_own_reads_what_it_likes() -> None:
    class Mine(SFTTrainer):
        def fit(self, args: Any, *given: Any) -> None:
            super().fit(args)

        def training_step(self) -> None:
            pass

    model, strategy = SimpleNamespace(config=SimpleNamespace()), SimpleNamespace(train_batch_size=1)
    with pytest.raises(AttributeError):  # of the strategy, behind the check
        Mine(model, strategy, None, [], None, None, objective=SFTObjective())
    trainer = Mine.__new__(Mine)
    trainer.loss_fn, trainer.max_epochs = print, 1
    trainer.epochs = 2
    with pytest.raises(UserError, match="loss_fn and training_step of its own"):
        trainer.fit(None)


def test_other_names_are_a_subclasss_own() -> None:
    class Mine(SFTTrainer):
        my_loss = None

    trainer = Mine.__new__(Mine)
    trainer.other_loss = trainer.my_loss
    trainer._check_overrides()
