"""What is said of a run's memory before it starts, held to what training takes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.memory import Case, estimated_bytes, measured_bytes
from openrlhf.cli import estimate_memory
from openrlhf.config import DeepspeedConfig, LoraConfig, SFTConfig
from openrlhf.engine.state_memory import estimate_memory as of_states
from openrlhf.errors import UserError
from openrlhf.models import activation_memory
from openrlhf.models.activation_memory import memory_of
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.run import memory_estimate
from openrlhf.run.memory_estimate import Memory, RunMemory, Way
from tests.helpers.tiny_models import tiny_model

GIB = 2**30
DENSE = Case("dense, tied head", num_tokens=2_048)
EXPERTS = Case("experts", lora_rank=16, recomputes=True, num_tokens=1_024)


@pytest.mark.slow
@pytest.mark.parametrize("case", [DENSE, EXPERTS], ids=["dense, full", "experts, LoRA, recomputed"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(case):
    measured, estimated = measured_bytes(case), estimated_bytes(case)
    assert estimated == pytest.approx(measured, rel=0.15)


def run_memory(num_ranks=1, kind="llama", **changes):
    model = tiny_model(kind)
    facts = ModelFacts(type(model), model.config, model.dtype)
    config = SFTConfig(ds=replace(DeepspeedConfig(packing_samples=True, param_dtype="fp32"), **changes))
    return RunMemory(config, facts, num_ranks, on_cpu=True)


def test_activations_grow_with_the_tokens_and_shrink_where_layers_are_recomputed():
    run = run_memory()
    kept, recomputed = (
        [run.of(Way(2, False, recomputes), tokens).activation_bytes for tokens in (1_000, 2_000)]
        for recomputes in (False, True)
    )
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.1)
    assert recomputed[1] < 0.7 * kept[1]


def test_a_layer_computed_again_stands_beside_the_gradients_behind_it():
    model = tiny_model("qwen3_moe", num_hidden_layers=4, dtype=torch.bfloat16)
    found = memory_of(ModelFacts(type(model), model.config, model.dtype), LoraConfig(), recomputes=True)
    in_layers = sum(one.numel() for name, one in model.named_parameters() if ".layers." in name)
    held, done = max(one for one in found.peaks if one[1] > 0.7 * in_layers)
    assert held > 0.9 * max(found.peaks)[0], "the first layer takes as much as the last one"
    alone, beside = (found.activation_bytes(1, on_cpu=False, waiting_bytes=each) for each in (0, 10**6))
    assert beside - alone > 0.9 * 10**6 * done


def test_zero_3_keeps_its_bucket_beside_the_weights_that_it_gathers():
    sizes = dict(num_ranks=2, param_dtype="bf16")
    second, third = (of_states(1_000, 1_000, zero_stage=stage, **sizes) for stage in (2, 3))
    assert (second.beside_bytes, second.waiting_bytes) == (0, 2)
    assert (third.beside_bytes, third.waiting_bytes) == (2_000 + 2_000, 0)


def test_weights_are_no_activations(monkeypatch):
    model, kept = tiny_model("llama"), []
    for num_tokens in (64, 4_096):
        monkeypatch.setattr(activation_memory, "_TOKENS_TRIED", num_tokens)
        facts = ModelFacts(type(model), model.config, model.dtype)
        kept.append(memory_of(facts, LoraConfig(), recomputes=False).kept_a_token)
    assert kept[0] == pytest.approx(kept[1], rel=0.01)


def test_adapters_leave_gradients_and_states_of_the_base_out():
    full, adapters = (run_memory(lora=LoraConfig(rank=rank)).of(Way(2, False, False), 100).states for rank in (0, 2))
    assert adapters.optimizer_bytes < full.optimizer_bytes / 4
    assert adapters.weights_bytes > full.weights_bytes


def test_adapters_are_of_the_models_precision():
    model = tiny_model("llama", dtype=torch.bfloat16)
    facts = ModelFacts(type(model), model.config, torch.bfloat16)
    base, adapted = (memory_of(facts, LoraConfig(rank=rank), False) for rank in (0, 2))
    assert adapted.kept_a_token < 1.4 * base.kept_a_token


@pytest.mark.parametrize(("kind", "attention"), [("gemma2", "auto"), ("llama", "eager")])
def test_scores_that_an_attention_keeps_are_counted(kind, attention):
    length = 512
    model = tiny_model(kind, dtype=torch.float32)
    model.set_attn_implementation("eager" if attention == "eager" else "per_sample")
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False)[0]
    measured = sum(size for place, size in kept.items() if place not in weights)
    assert hidden.requires_grad
    found = run_memory(kind=kind, attn_implementation=attention).model(recomputes=False)
    estimated = length * found.kept_a_token + length**2 * found.scores_kept
    assert estimated == pytest.approx(measured, rel=0.15)
    assert length**2 * found.scores_kept > 0.5 * measured
    again = run_memory(kind=kind, attn_implementation=attention).model(recomputes=True)
    assert again.scores_kept == 0
    assert again.scores_at_peak < found.scores_at_peak
    assert run_memory(kind="llama").model(recomputes=False).scores_at_peak == 0


def test_tensor_parallelism_divides_what_it_shares_out_alone():
    model = tiny_model("llama")
    size_bytes = 4 * sum(one.numel() for one in model.parameters())
    in_layers = 4 * sum(one.weight.numel() for one in model.model.layers.modules() if isinstance(one, torch.nn.Linear))
    of_two = run_memory(num_ranks=2, tensor_parallel_size=2).of(Way(0, False, False), 1).states
    assert of_two.weights_bytes == size_bytes - in_layers // 2


def of_quantized(kind="llama", **changes):
    model = tiny_model(kind, dtype=torch.bfloat16)
    facts = ModelFacts(type(model), model.config, model.dtype)
    ds = DeepspeedConfig(packing_samples=True, lora=LoraConfig(rank=2), **changes)
    return RunMemory(SFTConfig(ds=ds), facts, 1, on_cpu=True), model


@pytest.mark.parametrize("num_frozen", [0, 1])
def test_four_bits_are_saved_in_the_layers_of_every_frozen_model(num_frozen):
    (plain, model), (quantized, _) = of_quantized(), of_quantized(load_in_4bit=True)
    plain._num_frozen = quantized._num_frozen = num_frozen
    before, after = (run.of(Way(2, False, False), 1).states.weights_bytes for run in (plain, quantized))
    layers = [one for one in model.model.layers.modules() if isinstance(one, torch.nn.Linear)]
    saved = 1.45 * sum(one.weight.numel() for one in layers) * (1 + num_frozen)
    assert before - after == pytest.approx(saved, rel=1e-3)


def test_a_model_that_reads_its_numbers_is_not_estimated():
    assert run_memory(kind="dynamic_rope").of(Way(2, False, False), 100) is None


def test_a_run_without_room_is_refused_with_a_way_that_fits(monkeypatch):
    run = run_memory(num_ranks=4)
    most, least = (run.of(Way(stage, False, recomputes), 500) for stage, recomputes in ((2, False), (2, True)))
    free = Memory(on_cpu=True, device_bytes=int(least.device_bytes / 0.85))
    assert most.device_bytes > 1.2 * free.device_bytes
    monkeypatch.setattr(Memory, "free_here", lambda on_cpu: free)
    with pytest.raises(UserError, match="no room for row 7 of 500 tokens.*gradient_checkpointing_enable would fit"):
        run.check([Way(2, False, False)], 500, "row 7 of 500 tokens")
    run.check([Way(2, False, False)], 1, "a single token")
    monkeypatch.setattr(Memory, "free_here", lambda on_cpu: Memory(on_cpu=True, device_bytes=1000))
    with pytest.raises(UserError, match="no result, more ranks would take less; of what changes it, adapters"):
        run.check([Way(2, False, False)], 500, "row 7 of 500 tokens")


def test_an_offloaded_state_must_fit_the_hosts_memory():
    needed = run_memory().of(Way(2, True, False), 100)
    assert needed.fits(Memory(False, GIB, GIB))
    assert not needed.fits(Memory(False, GIB, needed.states.host_bytes))
    assert not needed.fits(Memory(True, needed.device_bytes * 2))


def test_gradients_stay_on_the_device_where_zero_1_offloads_the_optimizer():
    """DeepSpeed's stage 1 keeps each weight's whole sum until the backward pass ends (measured: 4 bytes a weight)."""
    sizes = dict(num_ranks=4, param_dtype="bf16", gradient_dtype="fp32", optimizer_offload=True)
    found = [of_states(1_000, 1_000, zero_stage=stage, **sizes).gradients_bytes for stage in (1, 2, 3)]
    assert found == [4_000, 0, 0]
    assert {way.zero_stage for way in run_memory().ways_to_recommend() if way.offload} == {2, 3}


def test_an_offloaded_optimizer_is_the_remedy_with_the_stage_that_offloads_gradients_too(monkeypatch):
    model = tiny_model("llama")
    config = type(model.config)(num_hidden_layers=8)  # of a size that buckets do not outweigh
    run = RunMemory(SFTConfig(), ModelFacts(type(model), config, torch.bfloat16), 1, on_cpu=False)
    enough = run.of(Way(2, True, False), 1).device_bytes
    monkeypatch.setattr(Memory, "free_here", lambda on_cpu: Memory(on_cpu, int(enough / 0.89)))
    with pytest.raises(UserError, match=r"no result, --ds\.zero_stage 2 --ds\.adam_offload would fit"):
        run.check([Way(2, False, False)], 1, "a single token")


def test_the_ranks_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory_estimate, "bytes_left", lambda: 8 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Memory.free_here(on_cpu=True).device_bytes == 2 * GIB


# --- the command


@pytest.fixture
def model(tmp_path):
    """A folder with a configuration and nothing else."""
    tiny_model("llama").config.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def said(capsys, *argv):
    estimate_memory.main([*argv])
    return capsys.readouterr().out


def test_the_command_says_what_fits(capsys, model):
    text = said(capsys, "--model.model_name_or_path", model, "--memory", "0.9GB", "--ranks", "4")
    assert "4 × cuda; micro-batches of 32,768 tokens" in text
    assert "The fastest that fits: --ds.zero_stage 1\n" in text
    assert "A run here: packed" in text


def test_the_command_says_that_nothing_fits(capsys, model):
    text = said(capsys, "--model.model_name_or_path", model, "--memory", "10KB", "--ds.lora.rank", "4")
    assert "Nothing fits 9.8 KiB: --ds.zero_stage" in text
    assert "A run here is refused: this run needs about" in text
    assert "no room for a sample of 2,048 tokens" in text


def test_the_cells_of_a_large_model_are_in_gib(capsys, tmp_path):
    shape = dict(hidden_size=32_768, intermediate_size=131_072, num_attention_heads=256, num_key_value_heads=256)
    tiny_model("llama").config.__class__(**shape, num_hidden_layers=8).save_pretrained(tmp_path)
    assert "In GiB, of a rank." in said(capsys, "--model.model_name_or_path", str(tmp_path))


def test_a_pod_of_a_job_needs_no_number_of_its_ranks(capsys, model, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "64", "MASTER_ADDR": "job-0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert "GiB" in said(capsys, "--model.model_name_or_path", model, "--device", "cpu")


def test_settings_are_checked_for_the_ranks_that_are_asked_for(model):
    words = ["--model.model_name_or_path", model, "--ds.packing_samples", "--ds.ring_attn_size", "2"]
    with pytest.raises(UserError, match="does not divide the 3 ranks"):
        estimate_memory.main([*words, "--ranks", "3"])
