"""Which samples make a step, and which rank computes them.

order.py (row at a place of an epoch) → schedule.py (rows of a step) → layout.py (micro-batches of each rank)
→ micro_batch.py (tensors) → loader.py (step windows, built beside the training)
"""

from openrlhf.batching.layout import FixedSize, TokenBudget, layout_of
from openrlhf.batching.loader import MicroBatchFormat, StepWindowLoader, windows_of_foreign_loader
from openrlhf.batching.micro_batch import MicroBatch, Sample, make_micro_batch
from openrlhf.batching.schedule import StepSchedule
from openrlhf.batching.window import StepWindow, WindowCounts

__all__ = [
    "FixedSize",
    "MicroBatch",
    "MicroBatchFormat",
    "Sample",
    "StepSchedule",
    "StepWindow",
    "StepWindowLoader",
    "TokenBudget",
    "WindowCounts",
    "layout_of",
    "make_micro_batch",
    "windows_of_foreign_loader",
]
