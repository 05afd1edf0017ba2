"""Making an engine, and driving it through a step: on a stand-in for DeepSpeed's."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from transformers import PreTrainedModel

from openrlhf.config import DeepspeedConfig
from openrlhf.engine.engine_config import engine_config
from openrlhf.engine.step_guard import StepGuard
from openrlhf.engine.trained_model import TrainedModel, prepare_evaluation, prepare_training
from openrlhf.errors import UserError
from openrlhf.models import Actor
from tests.helpers.tiny_models import tiny_model
from tests.trainer.plain_engine import PlainEngine
from tests.zoo.shrink import small_model_named


class StandIn(PlainEngine):
    """Notes what it is told."""

    def __init__(self, module: torch.nn.Module, lr: float = 0.0):
        super().__init__(module, lr)
        self.calls: list[tuple[str, Any]] = []

    def allreduce_and_copy(self, *words: Any) -> None:
        raise AssertionError("nothing is averaged here")

    def fp16_enabled(self) -> bool:
        return False

    def compile(self) -> None:
        self.calls.append(("compile", None))

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None:
        self.calls.append(("boundary", is_last))

    def backward(self, loss: torch.Tensor) -> None:
        self.calls.append(("backward", loss.item()))


@pytest.fixture
def initialized(monkeypatch) -> dict[str, Any]:
    """What `deepspeed.initialize` was given; it returns a stand-in."""
    given: dict[str, Any] = {}

    def initialize(model: torch.nn.Module, config: dict, dist_init_required: bool, optimizer: Any = None) -> tuple:
        given.update(model=model, config=config, optimizer=optimizer)
        return StandIn(model), optimizer, None, None

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    return given


def prepare(kind: str | PreTrainedModel = "llama", said: list[str] | None = None, **ds: Any) -> TrainedModel:
    actor = Actor(tiny_model(kind) if isinstance(kind, str) else kind)
    optimizer = torch.optim.SGD(actor.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 10)
    config = engine_config(DeepspeedConfig(**ds), max_norm=1.0, pin_memory=False)
    say = print if said is None else said.append
    trained = prepare_training(actor, optimizer, schedule, config, torch.device("cpu"), StepGuard(), 4, None, say)
    assert actor.engine is trained.engine
    return trained


def calls_of(trained: TrainedModel) -> list[tuple[str, Any]]:
    return trained.engine.calls


@pytest.mark.usefixtures("initialized")
@pytest.mark.parametrize("deepcompile", [True, False])
def test_deepcompile_compiles_the_engine(deepcompile):
    trained = prepare(deepcompile=deepcompile)
    assert calls_of(trained) == ([("compile", None)] if deepcompile else [])


def test_deepspeed_is_told_of_deepcompile(initialized):
    prepare(deepcompile=True)
    assert initialized["config"]["compile"] == {"deepcompile": True}


def test_a_model_that_is_only_evaluated_is_not_compiled(initialized):
    config = engine_config(DeepspeedConfig(deepcompile=True), max_norm=1.0, pin_memory=False, is_training=False)
    actor = Actor(tiny_model("llama"))
    prepare_evaluation(actor, config, torch.device("cpu"))
    assert actor.engine.calls == []
    assert "compile" not in initialized["config"]


@pytest.mark.parametrize("ds", [dict(zero_stage=0, param_dtype="fp32"), dict(zero_stage=1, param_dtype="bf16")])
def test_deepcompile_is_refused_where_deepspeed_has_none(ds):
    with pytest.raises(UserError, match="deepcompile"):
        engine_config(DeepspeedConfig(deepcompile=True, **ds), max_norm=1.0, pin_memory=False)


@pytest.mark.usefixtures("initialized")
def test_micro_batches_say_which_is_the_last():
    trained = prepare()
    for is_last in (False, True):
        with trained.micro_batch(is_last):
            pass
    assert calls_of(trained) == [("boundary", False), ("boundary", True)]


@pytest.mark.usefixtures("initialized")
def test_the_share_of_a_loss_undoes_the_average_over_ranks():
    trained = prepare()
    trained.backward_share(torch.tensor(0.5, requires_grad=True))
    assert calls_of(trained) == [("backward", 4 * 0.5)]


@pytest.mark.usefixtures("initialized")
def test_the_schedule_goes_on_although_an_update_is_held_back():
    trained = prepare()
    for parameter in trained.engine.module.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    before = trained.scheduler.get_last_lr()[0]
    assert not trained.step().is_applied
    assert trained.scheduler.get_last_lr()[0] > before


def test_layers_are_shared_out_as_the_models_plan_says(initialized):
    prepare(kind="qwen3", tensor_parallel_size=2)
    shares = initialized["config"]["tensor_parallel"]
    assert shares["autotp_size"] == 2
    specs = {
        spec["patterns"][0].split(".")[-2].rstrip("\\"): spec for spec in shares["partition_config"]["layer_specs"]
    }
    assert specs["q_proj"]["partition_type"] == "column"
    assert specs["o_proj"]["partition_type"] == "row"
    assert (specs["q_norm"]["partition_type"], specs["q_norm"]["grad_allreduce"]) == ("skip", True)
    assert not any(spec["grad_allreduce"] for name, spec in specs.items() if name not in ("q_norm", "k_norm"))


@pytest.mark.usefixtures("initialized")
def test_zero_3_gathers_experts_as_a_whole(monkeypatch):
    marked: list[Any] = []
    monkeypatch.setattr(deepspeed.utils, "set_z3_leaf_modules", lambda module, leaves: marked.extend(leaves))
    said: list[str] = []
    prepare("qwen3_moe", said, zero_stage=3)
    assert [leaf.__name__ for leaf in marked] == ["Qwen3MoeSparseMoeBlock"]
    assert "Qwen3MoeSparseMoeBlock" in said[0]


@pytest.mark.usefixtures("initialized")
@pytest.mark.parametrize(("param_dtype", "is_told"), [("bf16", True), ("fp32", False)])
def test_weights_that_transformers_would_not_round_are_named(param_dtype, is_told):
    said: list[str] = []
    prepare(small_model_named("ernie4_5_moe"), said, param_dtype=param_dtype)
    assert any("in float32 (gate.weight" in one for one in said) == is_told, said
