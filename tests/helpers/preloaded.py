"""All that a rank needs before it knows which rank it is: imported once by the fork server, inherited by every rank.

Nothing here starts a thread or initialises torch.distributed: neither survives a fork.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import transformers.models.auto.tokenization_auto
import transformers.models.qwen3.modeling_qwen3
import transformers.optimization  # noqa: F401
from deepspeed.accelerator import get_accelerator

import openrlhf.run.dpo_run
import openrlhf.run.rm_run
import openrlhf.run.sft_run  # noqa: F401
from openrlhf.engine.operators import sole_compiler

torch.set_num_threads(1)
with sole_compiler("fused_adam"):
    get_accelerator().create_op_builder("FusedAdamBuilder").load(verbose=False)
