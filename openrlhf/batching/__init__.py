"""The batches: units of a step, the rank that computes each, and their tensors.

schedule.py (rows of a step) → rows.py (what a row holds) → unit.py (its sequences) → layout.py
(micro-batches of each rank) → micro_batch.py (tensors) → loader.py (step windows, built beside the training)
"""

from openrlhf.batching.distributed_sampler import DistributedSampler
from openrlhf.batching.foreign_loader import ForeignLoader
from openrlhf.batching.layout import FixedSize, StepLayout, TokenBudget, layout_of
from openrlhf.batching.loader import MicroBatchFormat, StepWindowLoader
from openrlhf.batching.micro_batch import MicroBatch, make_micro_batch
from openrlhf.batching.rows import pads_alone
from openrlhf.batching.schedule import StepSchedule
from openrlhf.batching.unit import TokenSequence, Unit, UnitLengths
from openrlhf.batching.window import StepWindow, WindowCounts

__all__ = [
    "DistributedSampler",
    "ForeignLoader",
    "FixedSize",
    "MicroBatch",
    "MicroBatchFormat",
    "StepLayout",
    "StepSchedule",
    "StepWindow",
    "StepWindowLoader",
    "TokenBudget",
    "TokenSequence",
    "Unit",
    "UnitLengths",
    "WindowCounts",
    "layout_of",
    "make_micro_batch",
    "pads_alone",
]
