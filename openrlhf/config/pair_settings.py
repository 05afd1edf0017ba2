"""Settings of the commands that train on pairs of answers: train_rm and train_dpo.

A setting of supervised fine-tuning that means nothing for pairs is a constant here: the commands have no flag for it.
"""

# mypy: disable-error-code="misc"
# (a constant stands in the place of a field, which dataclasses allow)

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from openrlhf.config.checks import COMMON_NOTICES
from openrlhf.config.kinds import BelowOne, Number, Place, PositiveNumber
from openrlhf.config.pair_checks import CHECKS_OF_PREFERENCES, CHECKS_OF_REWARDS, LOSSES_WITH_SMOOTHING
from openrlhf.config.schema import Command
from openrlhf.config.settings import (
    AdamConfig,
    CkptConfig,
    DataConfig,
    DeepspeedConfig,
    EvalConfig,
    Inspection,
    LoggerConfig,
    ModelConfig,
    TrainConfig,
    TrainingConfig,
    WandbConfig,
    free,
    must_match,
    taken,
)
from openrlhf.config.synonyms import COMMON_SYNONYMS
from openrlhf.errors import UserError


@dataclasses.dataclass(frozen=True)
class PairDataConfig(DataConfig):
    """The pairs of answers, and how rows become tokens."""

    format: ClassVar[str] = "pairs"
    input_key: ClassVar[str | None] = None
    output_key: ClassVar[str | None] = None
    multiturn: ClassVar[bool] = False
    targets: ClassVar[Literal["completion"]] = "completion"

    prompt_key: str | None = free(
        None, "column of the prompt; none means prompt, or the beginning that both answers share"
    )
    chosen_key: str = free("chosen", "column of the better answer: text or messages")
    rejected_key: str = free("rejected", "column of the other answer: text or messages")


@dataclasses.dataclass(frozen=True)
class PairEvalConfig(EvalConfig):
    """Evaluation on pairs that are not trained on."""

    subset_key: str | None = taken(None, "column by whose values the evaluation is told apart, besides the whole")


@dataclasses.dataclass(frozen=True)
class PairTrainConfig(TrainConfig):
    """How many pairs make a step, for how long, and when to stop."""

    loss: ClassVar[str] = ""
    loss_reduction: ClassVar[Literal["token"]] = "token"


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(ModelConfig):
    """The reward model that is trained, and its loss."""

    pretrain_mode_enable: ClassVar[bool] = False

    loss_type: Literal["sigmoid", "logexp"] = must_match(
        "sigmoid",
        "loss of a pair, d being the difference of its two rewards. sigmoid: -log sigmoid(d), Bradley-Terry "
        "(arXiv 2203.02155); logexp: log(1 + exp(-d)), the same without a margin",
    )
    margin_loss_enable: bool = must_match(
        False, "take a row's column margin from d (arXiv 2307.09288); some row must have one"
    )
    center_rewards_coef: Number = must_match(
        0.0, "adds that many times the square of the sum of both rewards, to keep them around 0 (arXiv 2312.09244)"
    )


@dataclasses.dataclass(frozen=True)
class PairDeepspeedConfig(DeepspeedConfig):
    """Precision, memory and how the work is split over ranks."""

    share_prompts: bool = free(
        True, "in packs, compute a prompt once for both its answers, where that saves a tenth of the tokens or more"
    )


@dataclasses.dataclass(frozen=True)
class RewardDeepspeedConfig(PairDeepspeedConfig):
    """Precision, memory and how the work is split over ranks; the name of the head."""

    value_head_prefix: str = free("score", "name of the reward's head in the model")


@dataclasses.dataclass(frozen=True)
class RewardLoggerConfig(LoggerConfig):
    """Numbers that are shown while training."""

    entropy: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class RMConfig(TrainingConfig):
    """Optimizer, schedule and clipping."""

    command: ClassVar[Command] = Command(
        "A reward model, from pairs of a better and a worse answer.",
        "deepspeed --module openrlhf.cli.train_rm",
        COMMON_SYNONYMS,
        CHECKS_OF_REWARDS,
        COMMON_NOTICES,
    )
    model: RewardModelConfig = RewardModelConfig()
    data: PairDataConfig = PairDataConfig()
    eval: PairEvalConfig = PairEvalConfig()
    train: PairTrainConfig = PairTrainConfig(max_epochs=1)
    ds: RewardDeepspeedConfig = RewardDeepspeedConfig()
    adam: AdamConfig = AdamConfig(lr=9e-6)
    ckpt: CkptConfig = CkptConfig(path="./ckpt/checkpoints_rm")
    logger: RewardLoggerConfig = RewardLoggerConfig(wandb=WandbConfig(project="openrlhf_train_rm"))


@dataclasses.dataclass(frozen=True)
class PreferenceModelConfig(ModelConfig):
    """The model that is trained, and its loss."""

    pretrain_mode_enable: ClassVar[bool] = False

    loss_type: str = must_match(
        "sigmoid",
        "losses of a pair, by commas. sigmoid: DPO (arXiv 2305.18290); ipo (2310.12036); hinge: SLiC (2309.06657); "
        "robust (2403.00409); exo_pair (2402.00856); nca_pair (2402.05369); bco_pair (2404.04656); sppo_hard "
        "(2405.00675); aot (2406.05882); apo_zero, apo_down (2408.06266); discopop (2406.08414); sigmoid_norm: DPO "
        "on means over tokens (2411.15124); simpo (2405.14734); orpo (2403.07691); sft: -log p of the chosen answer. "
        "simpo, orpo and sft need no reference",
    )
    loss_weights: str | None = must_match(None, "weight of each loss, by commas; none means 1 each")
    beta: PositiveNumber = must_match(
        0.1, "strength of the tie to the reference; simpo: scale of the margin; orpo: weight of the odds' ratio"
    )
    label_smoothing: BelowOne = must_match(
        0.0,
        "probability that a pair is the wrong way round: cDPO with sigmoid; exo_pair takes 0.001 for 0; of "
        f"{', '.join(LOSSES_WITH_SMOOTHING)} alone",
    )
    nll_loss_coef: Number = must_match(0.0, "adds that many times -log p of the chosen answers (arXiv 2404.19733)")
    ipo_enable: bool = must_match(
        False,
        "IPO on the sums of an answer's log-ratios, as OpenRLHF and the paper have it, in place of sigmoid; "
        "--model.loss_type ipo alone takes their means over the answer's tokens, as TRL does",
    )
    simpo_gamma: Number = must_match(0.5, "margin of simpo")

    def losses(self) -> dict[str, float]:
        """The weight of each loss of the mix, by name. Raises UserError where one lacks its weight."""
        names = [name.strip() for name in self.loss_type.split(",")]
        if self.ipo_enable:
            names = ["ipo" if name == "sigmoid" else name for name in names]
        weights = [float(one) for one in self.loss_weights.split(",")] if self.loss_weights else [1.0] * len(names)
        if len(weights) != len(names):
            raise UserError(f"loss_weights {self.loss_weights} must give one number for each of {', '.join(names)}.")
        return dict(zip(names, weights, strict=True))


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """The model that the trained one is held to. A resume compares its weights."""

    model_name_or_path: Place | None = free(
        None, "folder or hub name; none means the model before training: with LoRA the base under the adapters"
    )
    offload: bool = free(False, "keep a second model's weights in the host's memory, fetched layer by layer")
    precompute: bool = free(
        False, "compute its log-probs before the training, once for all runs with these data, and train without it"
    )


@dataclasses.dataclass(frozen=True)
class DPOConfig(TrainingConfig):
    """Optimizer, schedule and clipping."""

    command: ClassVar[Command] = Command(
        "Preference optimisation: DPO and its family, from pairs of a better and a worse answer.",
        "deepspeed --module openrlhf.cli.train_dpo",
        COMMON_SYNONYMS,
        CHECKS_OF_PREFERENCES,
        COMMON_NOTICES,
    )
    model: PreferenceModelConfig = PreferenceModelConfig()
    data: PairDataConfig = PairDataConfig()
    eval: PairEvalConfig = PairEvalConfig()
    train: PairTrainConfig = PairTrainConfig(max_epochs=1)
    ds: PairDeepspeedConfig = PairDeepspeedConfig()
    adam: AdamConfig = AdamConfig(lr=1e-5)
    ckpt: CkptConfig = CkptConfig(path="./ckpt/checkpoints_dpo")
    logger: LoggerConfig = LoggerConfig(wandb=WandbConfig(project="openrlhf_train_dpo"))
    ref: ReferenceConfig = ReferenceConfig()


@dataclasses.dataclass(frozen=True)
class InspectRMConfig(Inspection, RMConfig):
    """Report; optimizer, schedule and clipping, as in training."""


@dataclasses.dataclass(frozen=True)
class InspectDPOConfig(Inspection, DPOConfig):
    """Report; optimizer, schedule and clipping, as in training."""
