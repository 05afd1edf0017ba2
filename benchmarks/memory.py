"""The memory that `estimate_memory` promises against what training takes: `python -m benchmarks.memory` (20 minutes).

Each case trains a few steps in processes of its own, on the CPU: the peak of the resident size above what the process
had when everything was loaded and a toy model had been trained. Writes benchmarks/results/memory.md. What
benchmarks/results/memory.json holds is not measured again, unless `--again 3,5` names it; `--first 12` measures no more
than the first cases.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = Path(__file__).parent / "results" / "memory.json"
RESULTS = MEASURED.with_suffix(".md")
SHAPES: dict[str, dict[str, Any]] = {
    "dense, tied head": dict(
        model_type="qwen3",
        vocab_size=16_384,
        hidden_size=384,
        intermediate_size=1_024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "dense, deep": dict(
        model_type="llama",
        vocab_size=8_192,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
    ),
    "experts": dict(
        model_type="qwen3_moe",
        vocab_size=8_192,
        hidden_size=384,
        intermediate_size=1_024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
    ),
}
_TOY = dict(vocab_size=256, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
_STEPS, _MICRO_BATCHES = 2, 2


@dataclass(frozen=True)
class Case:
    """A model, how it is trained, and the tokens of a micro-batch."""

    shape: str
    lora_rank: int = 0
    recomputes: bool = False
    zero_stage: int = 2
    param_dtype: str = "bf16"
    num_tokens: int = 4_096
    offload: bool = False
    ranks: int = 1

    def words(self) -> str:
        how = ["LoRA" if self.lora_rank else "full", "recomputed" if self.recomputes else "kept"]
        how += ["offloaded"] if self.offload else []
        return f"{self.shape} | {', '.join(how)} | {self.param_dtype} | {self.zero_stage} × {self.ranks}"


CASES = (
    *(Case(shape, lora, recomputes) for shape in SHAPES for lora in (0, 16) for recomputes in (False, True)),
    Case("dense, deep", zero_stage=0),
    Case("dense, deep", zero_stage=0, param_dtype="fp32"),
    Case("dense, deep", zero_stage=1),
    Case("dense, deep", zero_stage=1, param_dtype="fp32"),
    Case("dense, deep", zero_stage=2, param_dtype="fp32", num_tokens=512),
    Case("dense, deep", zero_stage=3),
    Case("dense, deep", zero_stage=2, offload=True, num_tokens=512),
    *(Case("dense, deep", zero_stage=stage, ranks=2, num_tokens=1_024) for stage in (1, 2, 3)),
    Case("experts", zero_stage=3, ranks=2, num_tokens=1_024),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", default="")
    parser.add_argument("--first", type=int, default=len(CASES))
    choices = parser.parse_args()
    again = [int(word) for word in choices.again.split(",") if word]
    measured: dict[str, int] = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for number, case in enumerate(CASES[: choices.first]):
        if case.words() not in measured or number in again:
            measured[case.words()] = measured_bytes(case)
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(number, case.words(), _figures(measured[case.words()], estimated_bytes(case)), flush=True)
    known = [case for case in CASES if case.words() in measured]
    rows = [(case, measured[case.words()], estimated_bytes(case)) for case in known]
    RESULTS.write_text(_table(rows), encoding="utf-8")


def estimated_bytes(case: Case) -> int:
    """Of a rank, on the CPU: device and host are one."""
    from openrlhf.config import DeepspeedConfig, LoraConfig, SFTConfig
    from openrlhf.models.attention.calls import ModelFacts
    from openrlhf.models.loading import PARAM_DTYPES, causal_lm_class
    from openrlhf.run.memory_estimate import RunMemory, Way

    ds = DeepspeedConfig(param_dtype=case.param_dtype, lora=LoraConfig(rank=case.lora_rank), packing_samples=True)
    config = _config_of(case.shape)
    facts = ModelFacts(causal_lm_class(config), config, PARAM_DTYPES[case.param_dtype])
    run = RunMemory(SFTConfig(ds=ds), facts, case.ranks, on_cpu=True)
    found = run.of(Way(case.zero_stage, case.offload, case.recomputes), case.num_tokens)
    assert found is not None, "these models run without numbers"
    return found.device_bytes + found.states.host_bytes


def measured_bytes(case: Case) -> int:
    """The highest of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    gives_back_at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else what was freed still counts, as chance will have it
    env = {
        **os.environ,
        **gives_back_at_once,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(case.ranks),
        "LOCAL_WORLD_SIZE": str(case.ranks),
    }
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.memory_of_run", json.dumps(asdict(case)), folder]
        ranks = [
            subprocess.Popen(
                words,
                cwd=ROOT,
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(case.ranks)
        ]
        ended = [one.communicate(timeout=600) for one in ranks]
    if any(one.returncode for one in ranks):
        raise RuntimeError("\n".join(error for _, error in ended))
    return max(int(output.splitlines()[-1]) for output, _ in ended)


def peak_of_training(case: Case, folder: str) -> int:
    """Trains in this process, a rank of the case; the bytes above what it had before. `folder`: of all its ranks."""
    from openrlhf.config import DeepspeedConfig, TrainConfig
    from openrlhf.strategy import DeepspeedStrategy

    strategy = DeepspeedStrategy(
        ds=DeepspeedConfig(
            zero_stage=case.zero_stage,  # type: ignore[arg-type]
            param_dtype=case.param_dtype,  # type: ignore[arg-type]
            packing_samples=True,
            adam_offload=case.offload,
        ),
        train=TrainConfig(batch_size=_MICRO_BATCHES * case.ranks, micro_batch_size=1),
    )
    strategy.setup_distributed()
    _train(case, strategy, f"{folder}/toy", 64, **_TOY)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory_bytes("VmRSS")
    _train(case, strategy, f"{folder}/case", case.num_tokens)
    return _memory_bytes("VmHWM") - before


def _train(case: Case, strategy: Any, folder: str, num_tokens: int, **changes: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.models.loading import PARAM_DTYPES, loading_in_parts
    from openrlhf.trainer import SFTTrainer

    config, ds_config = _config_of(case.shape, **changes), strategy.get_ds_train_config()
    with loading_in_parts(ds_config):
        of_transformers = AutoModelForCausalLM.from_config(config, dtype=PARAM_DTYPES[case.param_dtype])
    model = Actor(of_transformers, packing_samples=True, lora_rank=case.lora_rank, ds_config=ds_config)
    if case.recomputes:
        model.gradient_checkpointing_enable()
    optimizer = strategy.create_optimizer(model)
    model, optimizer, scheduler = strategy.prepare((model, optimizer, build_schedule(optimizer, "constant", _STEPS)))
    ids = torch.arange(num_tokens) % config.vocab_size
    rows = [(ids, torch.ones_like(ids), torch.ones(num_tokens))] * (_STEPS * _MICRO_BATCHES * case.ranks)
    loader = strategy.setup_dataloader(rows, 1, shuffle=False)
    trainer = SFTTrainer(model, strategy, optimizer, loader, None, scheduler, batch_size=_MICRO_BATCHES, max_epochs=1)
    ckpt = argparse.Namespace(output_dir=folder, path=f"{folder}/checkpoints", disable_ds=True)
    trainer.fit(argparse.Namespace(ckpt=ckpt))


def _config_of(shape: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    fields = {**SHAPES[shape], **changes}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _memory_bytes(field: str) -> int:
    """VmRSS: in use, VmHWM: its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _figures(measured: int, estimated: int) -> str:
    return f"{measured / 2**20:,.0f} | {estimated / 2**20:,.0f} | {estimated / measured - 1:+.1%}"


def _table(rows: list[tuple[Case, int, int]]) -> str:
    lines = [
        "# Estimated and measured memory of a rank",
        "",
        "`python -m benchmarks.memory`: MiB of resident memory above an idle process; micro-batches of 4,096, 1,024 or "
        "512 tokens.",
        "",
        "| model | trained | precision | ZeRO × ranks | measured | estimated | off by |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        *(f"| {case.words()} | {_figures(measured, estimated)} |" for case, measured, estimated in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
