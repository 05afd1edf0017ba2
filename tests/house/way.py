"""The way of one optimizer step: the files that a reader opens to follow it from `train_sft` to the update.

The way begins with a step window; how rows become a window is another way, that of a sample (docs/architecture.md).
The list is written by hand and checked against a real step (`tests/test_house.py`): every file of the package that a
traced step runs through stands on the way or among the leaves.
"""

from __future__ import annotations

# A step begins where one of these is called; file → name of the function. The files that call it are traced, too.
ENTRIES = {"trainer/step.py": "run"}

# Files that decide what happens next; file → what happens there.
WAY = {
    "cli/train_sft.py": "parses the command line",
    "run/training_run.py": "builds data, model, optimizer and trainer in their order, and calls the trainer",
    "trainer/command_trainer.py": "turns settings into an objective and callbacks",
    "trainer/trainer.py": "takes a window after another, steps, and tells the callbacks",
    "trainer/step.py": "passes forward and backward over the micro-batches, then updates",
    "objectives/sft.py": "says what is minimised, and what it is divided by",
    "models/token_scorer.py": "runs the transformer and its head at the target tokens",
    "engine/trained_model.py": "holds the engine: micro-batch, backward, update",
}

# Files that a step runs through and that a reader need not open; file → why.
LEAVES = {
    "batching/micro_batch.py": "a micro-batch's tensors go to the device",
    "batching/window.py": "the counts of a window over all ranks",
    "engine/abandoned_step.py": "how many collectives a rank has begun, for a step that is given up",
    "engine/parameters.py": "a parameter that tensor parallelism shares out, for the norm of gradients",
    "engine/patches/cpu_adam_steps.py": "the same update, with its step count kept right",
    "engine/patches/float32_products.py": "the same products of bf16, made in float32 where the processor has none",
    "engine/patches/held_updates.py": "an optimizer that is told not to update",
    "engine/patches/patch.py": "the switch of all patches",
    "engine/step_guard.py": "an update that would do harm is held back",
    "models/attention/ring.py": "how many exchanges of a ring a rank has begun",
    "models/attention/ring_plan.py": "the borders of a pack's samples, in the attention's own keywords",
    "models/cpu_kernels/log_probs.py": "a tile's log-probs in C++; equal to the lines in tiles.py",
    "models/head/log_prob_head.py": "log-probs in place of logits; equal to log_softmax of the logits",
    "models/head/tied_embedding.py": "the gradient of a head that is the embedding as well",
    "models/head/tiles.py": "the same log-probs, tile by tile",
    "models/last_layer.py": "the last layer computes what is read, and no more",
    "models/prepared_model.py": "the inputs as the engine and the transformer take them",
    "objectives/objective.py": "an objective that asks nothing of the whole window",
    "objectives/scorer.py": "an objective's question to the model, handed on",
    "trainer/memory.py": "the same step in smaller pieces, where memory has run out",
    "trainer/shortage.py": "a rank whose memory runs out, and the ranks that wait for it",
    "trainer/metrics.py": "sums with their counts",
    "trainer/window_scores.py": "what an objective asks of the whole window, before any loss",
    "parallel/collectives.py": "sum and maximum over a group of ranks",
    "parallel/random_streams.py": "the seed of a micro-batch",
    "strategy/script_names.py": "this rank's number, the seed",
    "watchdog/watchdog.py": "a note of what this rank does, for the ranks that wait for it",
}

# Leaves that a step runs through on some processors alone: here, on those without products of bf16.
ON_SOME_PROCESSORS = {"engine/patches/float32_products.py"}
