"""The cells of the matrix: each a recipe in one layout on so many ranks. `MORE_…` is for `python -m tests.slow`."""

from __future__ import annotations

from dataclasses import dataclass

from tests.equivalence.cells import Layout
from tests.equivalence.reference import Recipe

MODELS = ("llama", "qwen3", "gemma2", "mixtral")
RANKS = (1, 2, 4)
ZERO_STAGES = (0, 1, 2, 3)
RINGS = (1, 2, 4)
KINDS = ("padded", "packed", "token budget")


@dataclass(frozen=True)
class Cell:
    """A run to hold against the reference."""

    ranks: int
    recipe: Recipe
    layout: Layout

    @property
    def kind(self) -> str:
        """How its samples stand together."""
        if self.layout.max_tokens:
            return "token budget"
        return "packed" if self.layout.packed else "padded"

    def __str__(self) -> str:
        reduction = "-sample_mean" if self.recipe.loss_reduction == "sample" else ""
        reduction += "" if self.recipe.loss == "nll" else f"-{self.recipe.loss.rpartition(':')[2]}"
        reduction += "-weighted" if self.recipe.has_weights else ""
        aux = f"-aux_over_{self.recipe.aux_loss_over}" if self.recipe.aux_loss_coef else ""
        return f"{self.ranks}ranks-{self.recipe.model_kind}-{self.layout}{reduction}{aux}"


def _cell(ranks: int, model: str, zero_stage: int, *, recipe: dict | None = None, **layout: object) -> Cell:
    return Cell(ranks, Recipe(model, **(recipe or {})), Layout(zero_stage=zero_stage, **layout))


LAYOUTS = [
    _cell(1, "qwen3", 1, max_tokens=80, checkpointing=True),
    _cell(1, "llama", 1, micro_batch_size=8),
    _cell(1, "gemma2", 2, micro_batch_size=2),
    _cell(1, "mixtral", 0, max_tokens=96, packed=True),
    _cell(1, "mixtral", 3, micro_batch_size=8, packed=True, checkpointing=True),
    _cell(2, "qwen3", 1, micro_batch_size=2, offload=True),
    _cell(2, "qwen3", 2, micro_batch_size=3, packed=True, ring=2),
    _cell(2, "llama", 3, max_tokens=80, packed=True, checkpointing=True),
    _cell(2, "llama", 0, micro_batch_size=4, packed=True, ring=2, checkpointing=True),
    _cell(2, "gemma2", 1, micro_batch_size=2, packed=True),
    _cell(2, "gemma2", 3, max_tokens=96, packed=True, ring=2),
    _cell(2, "gemma2", 0, micro_batch_size=8),
    _cell(2, "mixtral", 1, max_tokens=80, packed=True),
    _cell(4, "qwen3", 0, micro_batch_size=8, packed=True, ring=4),
    _cell(4, "llama", 1, max_tokens=32, packed=True, ring=4),
    _cell(4, "qwen3", 3, micro_batch_size=2),
    _cell(4, "mixtral", 2, micro_batch_size=1, checkpointing=True),
    _cell(4, "llama", 2, max_tokens=64, packed=True),
]
MORE_LAYOUTS = [
    _cell(1, "qwen3", 0, micro_batch_size=1),
    _cell(1, "qwen3", 2, micro_batch_size=4),
    _cell(1, "qwen3", 1, micro_batch_size=8, packed=True),
    _cell(1, "qwen3", 2, max_tokens=72, packed=True, compiled=True),
    _cell(1, "llama", 3, micro_batch_size=2, checkpointing=True),
    _cell(1, "llama", 2, max_tokens=64, packed=True),
    _cell(1, "gemma2", 0, micro_batch_size=4, packed=True, checkpointing=True),
    _cell(1, "gemma2", 3, max_tokens=70, packed=True, checkpointing=True),
    _cell(1, "mixtral", 2, micro_batch_size=4),
    _cell(2, "qwen3", 0, micro_batch_size=2),
    _cell(2, "qwen3", 1, micro_batch_size=1),
    _cell(2, "qwen3", 2, micro_batch_size=4),
    _cell(2, "qwen3", 3, micro_batch_size=2),
    _cell(2, "qwen3", 2, max_tokens=64, packed=True),
    _cell(2, "qwen3", 2, max_tokens=90),
    _cell(2, "qwen3", 1, max_tokens=48, packed=True, ring=2, checkpointing=True),
    _cell(2, "llama", 0, micro_batch_size=2),
    _cell(2, "llama", 2, micro_batch_size=1, checkpointing=True),
    _cell(2, "gemma2", 2, micro_batch_size=4, packed=True, ring=2),
    _cell(2, "mixtral", 1, micro_batch_size=2, packed=True),
    _cell(2, "mixtral", 3, micro_batch_size=2),
    _cell(2, "mixtral", 2, micro_batch_size=4, packed=True, ring=2),
    _cell(2, "mixtral", 0, micro_batch_size=1, packed=True, checkpointing=True),
    _cell(4, "gemma2", 2, micro_batch_size=4, packed=True, ring=2),
    _cell(4, "mixtral", 3, micro_batch_size=8, packed=True, ring=4, checkpointing=True),
]

# Batches cut by what a mean would hide: each sample weighs the same, however long its answer is.
SAMPLE_MEAN = [
    _cell(1, "llama", 2, micro_batch_size=2, recipe=dict(loss_reduction="sample")),
    _cell(2, "qwen3", 1, max_tokens=64, packed=True, recipe=dict(loss_reduction="sample")),
    _cell(2, "llama", 0, micro_batch_size=3, packed=True, ring=2, recipe=dict(loss_reduction="sample")),
]

# Other objectives, and rows and turns that weigh differently.
_DFT, _OWN = dict(loss="dft"), dict(loss="examples.own_objective:FocalObjective")
OBJECTIVES = [
    _cell(2, "llama", 3, max_tokens=64, packed=True, recipe=_DFT),
    _cell(1, "llama", 0, max_tokens=90, recipe=_OWN),
    _cell(1, "llama", 2, max_tokens=64, packed=True, recipe=dict(has_weights=True)),
    _cell(2, "qwen3", 1, micro_batch_size=2, packed=True, ring=2, recipe=dict(has_weights=True)),
    _cell(2, "llama", 2, micro_batch_size=3, recipe=dict(has_weights=True, loss_reduction="sample")),
]
MORE_OBJECTIVES = [
    _cell(1, "qwen3", 2, micro_batch_size=2, recipe=_DFT),
    _cell(2, "gemma2", 1, micro_batch_size=3, packed=True, ring=2, checkpointing=True, recipe=_DFT),
    _cell(2, "qwen3", 3, max_tokens=48, packed=True, ring=2, recipe=_OWN),
]

_OVER_WINDOW = dict(aux_loss_coef=0.02)
_OVER_SAMPLE = dict(aux_loss_coef=0.02, aux_loss_over="sample")
_LAST_WINDOW_OF_ONE = dict(aux_loss_coef=0.02, num_rows=17)  # all ranks but one then hold no sample
# Counted in each micro-batch, where nothing else is said: that depends on the cut, so the reference is cut likewise.
# Counted over all ranks of a micro-step (global), the cut over ranks makes no difference.
AUX_LOSS = [
    _cell(1, "mixtral", 0, micro_batch_size=8, packed=True, checkpointing=True, recipe=_OVER_WINDOW),
    _cell(1, "mixtral", 1, micro_batch_size=1, packed=True, recipe=_OVER_SAMPLE),
    _cell(2, "mixtral", 1, micro_batch_size=8, packed=True, ring=2, recipe=_OVER_WINDOW),
    _cell(2, "mixtral", 3, micro_batch_size=8, aux_loss_scope="global", recipe=_LAST_WINDOW_OF_ONE),
    _cell(
        4, "mixtral", 2, micro_batch_size=4, packed=True, ring=2, aux_loss_scope="global", recipe=_LAST_WINDOW_OF_ONE
    ),
]
MORE_AUX_LOSS = [
    _cell(1, "mixtral", 2, micro_batch_size=8, recipe=_OVER_WINDOW),
    _cell(2, "mixtral", 2, micro_batch_size=1, recipe=_OVER_SAMPLE),
    _cell(2, "mixtral", 2, micro_batch_size=4, aux_loss_scope="global", recipe=_OVER_WINDOW),
    _cell(2, "mixtral", 0, micro_batch_size=8, packed=True, aux_loss_scope="global", recipe=_LAST_WINDOW_OF_ONE),
    _cell(2, "mixtral", 2, micro_batch_size=8, packed=True, ring=2, aux_loss_scope="global", recipe=_OVER_WINDOW),
]

# A bf16 run keeps its weights in float32 and computes with their bf16 rounding. The reference does that too, in float64
# otherwise: what is compared is the arithmetic and the layout, not the choice to train in bf16.
_BF16_WEIGHTS = dict(has_bf16_weights=True)
BF16 = [
    _cell(1, "qwen3", 2, micro_batch_size=2, dtype="bf16", recipe=_BF16_WEIGHTS),
    _cell(2, "qwen3", 0, micro_batch_size=4, packed=True, dtype="bf16", recipe=_BF16_WEIGHTS),
    _cell(2, "qwen3", 3, micro_batch_size=2, checkpointing=True, dtype="bf16", recipe=_BF16_WEIGHTS),
]
MORE_BF16 = [
    _cell(1, "llama", 0, micro_batch_size=4, dtype="bf16", recipe=_BF16_WEIGHTS),
    _cell(2, "llama", 1, max_tokens=64, packed=True, dtype="bf16", recipe=_BF16_WEIGHTS),
    _cell(2, "gemma2", 2, micro_batch_size=4, packed=True, ring=2, dtype="bf16", recipe=_BF16_WEIGHTS),
]
