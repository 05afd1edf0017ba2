"""The way of one optimizer step: the files that a reader opens to follow it from `train_sft` to the update.

The list is written by hand and checked against a real step (`tests/test_house.py`): every file of the package that a
traced step runs through stands on the way or among the leaves.
"""

from __future__ import annotations

# A step begins where one of these is called; file → name of the function. The files that call it are traced, too.
ENTRIES = {
    "batching/loader.py": "_window",
    "trainer/window_step.py": "run",
}

# Files that decide what happens next; file → what happens there.
WAY = {
    "cli/train_sft.py": "parses the command line and runs the parts of a run in their order",
    "run/sft_run.py": "builds data, model, optimizer and trainer, and calls the trainer",
    "trainer/sft_trainer.py": "takes a window after another, and steps",
    "batching/loader.py": "reads the rows of a window and lays them out for this rank",
    "batching/layout.py": "cuts a window's samples into micro-batches of each rank",
    "batching/micro_batch.py": "makes tensors of samples: ids, targets, target weights",
    "batching/window.py": "counts a window's tokens and target weights over all ranks: the divisor",
    "trainer/window_step.py": "passes forward and backward over the micro-batches, then updates",
    "models/actor.py": "scores the targets of a micro-batch",
    "models/token_scorer.py": "runs the transformer up to its hidden states",
    "models/head/log_prob_head.py": "takes the head's place in the model",
    "models/head/target_log_probs.py": "turns hidden states into log-probs of targets, tile by tile, and back",
    "strategy/strategy.py": "holds the engine: micro-batch, backward, update",
    "engine/engines.py": "builds DeepSpeed's engine and tells it where a step ends",
    "engine/step_guard.py": "looks at the gradients, and updates or leaves the step out",
}

# Files that a step runs through and that a reader need not open; file → why.
LEAVES = {
    "batching/prefetch.py": "an iterator's items, made ahead in a thread",
    "datasets/prepared.py": "a row out of the prepared file",
    "datasets/sft_dataset.py": "a row as tensors",
    "engine/patches/cpu_adam_steps.py": "the same update, with its step count kept right",
    "models/cpu_kernels/log_probs.py": "a tile's log-probs in C++; equal to the lines in target_log_probs.py",
    "models/head/logit_transform.py": "the model's own scale and cap of logits",
    "models/head/tied_embedding.py": "the gradient of a head that is the embedding as well",
    "parallel/collectives.py": "sum and maximum over a group of ranks",
    "parallel/random_streams.py": "the seed of a micro-batch",
    "tracking/meters.py": "sums with their counts",
    "watchdog/watchdog.py": "a note of what this rank does, for the ranks that wait for it",
}
