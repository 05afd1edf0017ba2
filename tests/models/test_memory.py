"""The memory of passes: of the log-prob path at a vocabulary of 151,936, and of layers that are computed again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.slow import slow

NUM_TARGETS, HIDDEN, VOCAB = 1024, 16, 151_936
FULL_LOGITS_BYTES = 4 * NUM_TARGETS * VOCAB

_MEMORY_BYTES = """
import sys, torch

def memory_bytes(field):  # VmRSS: in use, VmHWM: its peak; of this process alone, as getrusage's is not after a fork
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
"""

MEASURE = f"""{_MEMORY_BYTES}
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.head.tiles import LogitTransform

torch.manual_seed(0)
dtype = getattr(torch, sys.argv[1])
head = LogProbHead(torch.nn.Linear({HIDDEN}, {VOCAB}, bias=False).to(dtype), LogitTransform())
hidden = torch.randn({NUM_TARGETS}, {HIDDEN}, dtype=dtype, requires_grad=True)
target_ids = torch.randint(0, {VOCAB}, ({NUM_TARGETS},))
head(hidden[:8], target_ids[:8]).log_probs.sum().backward()  # what torch allocates once
before = memory_bytes('VmRSS')  # an earlier, higher peak would only make the result larger
head(hidden, target_ids).log_probs.sum().backward()
print(memory_bytes('VmHWM') - before)
"""

RECOMPUTED = f"""{_MEMORY_BYTES}
from transformers import LlamaConfig, LlamaForCausalLM
from openrlhf.engine.devices import give_back_at_once
from openrlhf.models import Actor

heads = dict(num_attention_heads=4, num_key_value_heads=4)
config = LlamaConfig(vocab_size=64, hidden_size=256, intermediate_size=2048, num_hidden_layers=4, **heads)
model = Actor(LlamaForCausalLM(config), packing_samples=True).train()
model.gradient_checkpointing_enable()
give_back_at_once()

def run(num_tokens):
    ids = torch.zeros(1, num_tokens, dtype=torch.long)
    model.scorer.base_model.model(input_ids=ids, use_cache=False)[0].sum().backward()

run(8)
before = memory_bytes("VmRSS")
run(1024)
print(memory_bytes("VmHWM") - before)
"""


@pytest.mark.parametrize("dtype", ["float32", *slow(["bfloat16"])])
def test_peak_memory_of_the_log_prob_path(dtype):
    command = [sys.executable, "-c", MEASURE, dtype]
    gives_back_at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else what was freed still counts, as chance will have it
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | gives_back_at_once)
    assert result.returncode == 0, result.stderr
    peak_bytes = int(result.stdout)
    assert peak_bytes < FULL_LOGITS_BYTES / 10, f"{peak_bytes / 2**20:.0f} MiB"


def test_layers_that_are_computed_again_give_back_what_they_held():
    """It takes 68 MiB; 101 and more where glibc before its version 2.38 keeps what was freed."""
    thresholds = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if name not in thresholds}
    command = [sys.executable, "-c", RECOMPUTED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 85 * 2**20
