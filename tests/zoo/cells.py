"""One type of model in every way that the package trains it, each held to the reference.

A cell is `ok`; `refused`, by a `UserError`; `wrong`, by how much; or a `crash`, any other exception. `none` is a cell
that asks for what transformers does not have: a load-balancing loss of this type.
"""

from __future__ import annotations

import copy
import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from openrlhf.batching import FixedSize, MicroBatchFormat, StepSchedule, StepWindowLoader
from openrlhf.checkpoint.export import export_model
from openrlhf.engine.step_guard import StepGuard
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives import NO_AUX_LOSS, AuxLossSettings, SFTObjective
from openrlhf.parallel.groups import ProcessGroups, alone, make_process_groups
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.step import WindowStep
from tests.helpers.ranks import RankPool
from tests.trainer.plain_engine import PlainEngine
from tests.zoo import reference
from tests.zoo.reference import Curve
from tests.zoo.shrink import CannotBeBuilt, first_sentence, in_short

TOLERANCES = {"loss": 1e-4, "gradient norm": 3e-3, "auxiliary loss": 1e-4}  # relative; float32 differs by 1e-6 mostly


@dataclass(frozen=True)
class Finding:
    """What a cell shows."""

    verdict: str  # "ok", "refused", "wrong", "crash", "none"
    text: str = ""  # the refusal's first sentence, how wrong, or the exception
    is_late: bool = False  # refused only in the first step


@dataclass(frozen=True)
class Subject:
    """A saved model, and what the reference says of it."""

    folder: Path
    reference_dtype: torch.dtype
    expected: Curve
    dtype: torch.dtype = torch.float32  # that the package computes in

    @classmethod
    def saved(cls, model: Any, folder: Path) -> Subject:
        """Raises CannotBeBuilt where plain transformers cannot train the model, or its loss is not finite."""
        model.save_pretrained(folder)
        try:
            dtype, expected = cls._reference(folder)
        except Exception as error:
            raise CannotBeBuilt(f"plain transformers cannot train it: {in_short(error)}") from error
        if not expected.is_finite:
            raise CannotBeBuilt("its loss in plain transformers is not finite")
        return cls(folder, dtype, expected)

    @staticmethod
    def _reference(folder: Path) -> tuple[torch.dtype, Curve]:
        """In float32 for a model that computes so whatever its weights are: masks of float64 overflow in it."""
        try:
            expected = reference.train(reference.load(folder, torch.float64))
        except RuntimeError:
            expected = None
        if expected is not None and expected.is_finite:
            return torch.float64, expected
        return torch.float32, reference.train(reference.load(folder, torch.float32))

    def actor(self, **options: Any) -> Actor:
        """As the command line makes it, in float32; then in the dtype that is asked for."""
        actor = Actor(str(self.folder), param_dtype="fp32", **options).train()
        if self.dtype == torch.float64:
            actor.scorer.base_model.set_experts_implementation("eager")
        return actor.to(self.dtype)


# --- the cells ---------------------------------------------------------------------------------------------------


def padded(subject: Subject) -> Finding:
    return _compare(_train(subject, subject.actor()), subject.expected)


def checkpointed(subject: Subject) -> Finding:
    actor = subject.actor()
    actor.gradient_checkpointing_enable()
    return _compare(_train(subject, actor), subject.expected)


def packed(subject: Subject, attention: str = "auto") -> Finding:
    actor = subject.actor(packing_samples=True, attn_implementation=attention)
    return _compare(_train(subject, actor, packed=True), subject.expected)


def lora(subject: Subject) -> Finding:
    from peft import get_peft_model

    torch.manual_seed(3)
    actor = subject.actor(lora_rank=4)
    adapters = {name: parameter for name, parameter in actor.model.named_parameters() if parameter.requires_grad}
    for name, parameter in adapters.items():
        if "lora_B" in name:  # zeros, which would hide the other half
            torch.nn.init.normal_(parameter, std=0.05)
    config = copy.deepcopy(actor.model.peft_config["default"])
    plain = get_peft_model(reference.load(subject.folder, subject.reference_dtype), config).to(subject.reference_dtype)
    loaded = plain.load_state_dict({name: value.detach() for name, value in adapters.items()}, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys[:3]
    return _compare(_train(subject, actor), reference.train(plain))


def export(subject: Subject) -> Finding:
    """Saved, opened again in plain transformers: same logits; same keys and configuration as a plain save."""
    plain, exported = (subject.folder.with_name(name) for name in ("plain", "exported"))
    reference.load(subject.folder, torch.float32).save_pretrained(plain)
    export_model(Actor(str(subject.folder), param_dtype="fp32").model, None, exported)
    if differing := _differing(_saved_keys(plain), _saved_keys(exported)):
        return Finding("wrong", f"keys: {differing}")
    config = _config(plain)
    if "use_cache" in config:
        config["use_cache"] = True  # an export is made for generation
    if differing := _differing(config, _config(exported)):
        return Finding("wrong", f"configuration: {differing}")
    of_plain, of_exported = (reference.logits(reference.load(folder, torch.float32)) for folder in (plain, exported))
    error = ((of_exported - of_plain).abs().max() / of_plain.abs().max()).item()  # memory's alignment shows: about 1e-7
    return Finding("ok") if error < 1e-5 else Finding("wrong", f"logits by {error:.1e}")


def aux_loss(subject: Subject) -> Finding:
    """The load-balancing loss of a micro-batch of one sample is transformers' own. Where it has none, no crash."""
    model = reference.load(subject.folder, subject.reference_dtype)
    settings = AuxLossSettings(reference.AUX_LOSS_COEF)
    if not reference.has_aux_loss(model):
        with suppress(UserError):
            _train(subject, subject.actor(), aux_loss=settings, micro_batch_size=1)
        return Finding("none")
    expected = reference.train(model, reference.AUX_LOSS_COEF)
    return _compare(_train(subject, subject.actor(), aux_loss=settings, micro_batch_size=1), expected)


def ring(subject: Subject, ranks: RankPool) -> Finding:
    return ranks.run(_on_a_rank, subject)[0]


CELLS: dict[str, Callable[[Subject, RankPool], Finding]] = {
    "padded": lambda subject, _: padded(subject),
    "packed": lambda subject, _: packed(subject),
    "eager": lambda subject, _: packed(subject, "eager"),
    "sdpa": lambda subject, _: packed(subject, "sdpa"),
    "checkpointed": lambda subject, _: checkpointed(subject),
    "LoRA": lambda subject, _: lora(subject),
    "ring of 2": ring,
    "export": lambda subject, _: export(subject),
    "aux loss": lambda subject, _: aux_loss(subject),
}


def all_cells(subject: Subject, ranks: RankPool) -> dict[str, Finding]:
    return {name: _sure(cell, subject, ranks) for name, cell in CELLS.items()}


def _sure(cell: Callable[[Subject, RankPool], Finding], subject: Subject, ranks: RankPool) -> Finding:
    """A cell that is wrong in float32 is computed again in float64, where rounding that a router magnifies is gone."""
    found = _judged(lambda: cell(subject, ranks))
    if found.verdict != "wrong" or subject.reference_dtype != torch.float64:
        return found
    again = _judged(lambda: cell(replace(subject, dtype=torch.float64), ranks))
    return again if again.verdict == "ok" else found


def _judged(cell: Callable[[], Finding]) -> Finding:
    try:
        return cell()
    except UserError as error:
        is_late = any(frame.name == "_forward_and_backward" for frame in traceback.extract_tb(error.__traceback__))
        return Finding("refused", first_sentence(str(error)), is_late)
    except Exception as error:
        return Finding("crash", in_short(error))


# --- training as the package does --------------------------------------------------------------------------------


_ALONE = alone()


class _Engine(PlainEngine):
    """AdamW on plain torch; a ring's ranks add their gradients up, as DeepSpeed's do."""

    def __init__(self, module: torch.nn.Module, group: Any):
        super().__init__(module)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = self.basic_optimizer = torch.optim.AdamW(trained, **reference.ADAMW)
        self._trained, self._group, self._is_last = trained, group, True

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None:
        self._is_last = is_last

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        if self._group is not None and self._is_last:
            for parameter in self._trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self._group)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def _train(
    subject: Subject,
    actor: Actor,
    packed: bool = False,
    aux_loss: AuxLossSettings = NO_AUX_LOSS,
    micro_batch_size: int = 3,
    groups: ProcessGroups = _ALONE,
) -> Curve:
    """The reference's steps, in micro-batches, by the package's own step; before, the look that a trainer takes."""
    if packed or micro_batch_size > 1:
        actor.check_layout(packed, groups.sequence)
    engine = _Engine(actor.trainable_module, groups.sequence)
    actor.attach_engine(engine)
    schedule = torch.optim.lr_scheduler.ConstantLR(engine.optimizer, factor=1.0)
    strategy = DeepspeedStrategy()
    strategy.groups = groups
    step = WindowStep(actor, TrainedModel(engine, schedule, StepGuard()), strategy, SFTObjective(), aux_loss)
    loader = StepWindowLoader(
        [
            (ids, torch.ones_like(ids), torch.cat([is_target[1:], is_target.new_zeros(1)]).long())
            for ids, is_target in reference.rows()
        ],
        StepSchedule(reference.NUM_ROWS, reference.BATCH_SIZE, seed=0, shuffle=False),
        FixedSize(micro_batch_size),
        MicroBatchFormat(packed),
        groups,
    )
    numbered = zip(range(reference.NUM_STEPS), loader.windows(), strict=False)
    results = [step.run(window, number) for number, window in numbered]
    return Curve(
        [result.loss for result in results],
        [result.outcome.grad_norm for result in results],
        [result.metrics["aux_loss"] for result in results if "aux_loss" in result.metrics],
    )


def _on_a_rank(subject: Subject) -> Finding:
    groups = make_process_groups(dist.get_world_size(), 1, timedelta(minutes=1))

    def cell() -> Finding:
        actor = subject.actor(packing_samples=True, ring_attn_size=dist.get_world_size())
        return _compare(_train(subject, actor, packed=True, groups=groups), subject.expected)

    return _judged(cell)


# --- comparing ---------------------------------------------------------------------------------------------------


def _compare(found: Curve, expected: Curve) -> Finding:
    pairs = {
        "loss": (found.losses, expected.losses),
        "gradient norm": (found.grad_norms, expected.grad_norms),
        "auxiliary loss": (found.aux_losses, expected.aux_losses),
    }
    for name, (of_found, of_expected) in pairs.items():
        errors = [abs(a - b) / max(abs(b), 1e-9) for a, b in zip(of_found, of_expected, strict=True)]
        step = next((number for number, error in enumerate(errors) if not error <= TOLERANCES[name]), None)
        if step is not None:
            return Finding("wrong", f"{name} of step {step + 1} by {errors[step]:.1e}")
    return Finding("ok")


def _differing(plain: dict[str, Any], exported: dict[str, Any]) -> str:
    names = sorted(name for name in plain.keys() | exported.keys() if plain.get(name) != exported.get(name))
    return "; ".join(f"{name}: {plain.get(name)} became {exported.get(name)}" for name in names[:3])


def _saved_keys(folder: Path) -> dict[str, Any]:
    keys = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            keys |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return keys


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
