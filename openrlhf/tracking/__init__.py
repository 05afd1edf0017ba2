"""What people see of a run: sums and counts until they are logged, then files, bars, tables and pictures.

meters → `Tracker` → sinks (`metrics.jsonl`, console, TensorBoard, W&B) → `draw_training_curves`;
`print_start_table` speaks before the first step. A record is numbers by name: whoever logs one more name gets
one more number in the file and one more chart.
"""

from openrlhf.tracking.curves import draw_training_curves
from openrlhf.tracking.memory_estimate import MemoryEstimate, estimate_memory
from openrlhf.tracking.meters import WeightedSums
from openrlhf.tracking.metrics_file import METRICS_FILE
from openrlhf.tracking.start_table import RunSummary, print_start_table
from openrlhf.tracking.tracker import Sink, Tracker, open_tracker

__all__ = [
    "METRICS_FILE",
    "MemoryEstimate",
    "RunSummary",
    "Sink",
    "Tracker",
    "WeightedSums",
    "draw_training_curves",
    "estimate_memory",
    "open_tracker",
    "print_start_table",
]
