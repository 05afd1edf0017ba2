"""What people see of a run: sums and counts until they are logged, then files, bars, tables and pictures.

meters → `Tracker` → sinks (`metrics.jsonl`, console, TensorBoard, W&B) → `draw_training_curves`;
`print_start_table` speaks before the first step.
"""

from openrlhf.tracking.curves import draw_training_curves
from openrlhf.tracking.memory_estimate import MemoryEstimate, estimate_memory
from openrlhf.tracking.meters import WeightedSums
from openrlhf.tracking.open_tracker import WandbSettings, open_tracker
from openrlhf.tracking.records import EvalRecord, StepRecord
from openrlhf.tracking.start_table import RunSummary, print_start_table
from openrlhf.tracking.tracker import Tracker

__all__ = [
    "EvalRecord",
    "MemoryEstimate",
    "RunSummary",
    "StepRecord",
    "Tracker",
    "WandbSettings",
    "WeightedSums",
    "draw_training_curves",
    "estimate_memory",
    "open_tracker",
    "print_start_table",
]
