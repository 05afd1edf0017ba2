"""The choice of attention on a machine with CUDA, by stand-in packages and transformers' own loading of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.nn.attention.varlen as torch_varlen
from transformers.utils import import_utils

from openrlhf.config import DPOConfig, SFTConfig, parse_config
from openrlhf.config.pair_settings import PairDeepspeedConfig
from openrlhf.engine.torch_operators import cuda_flash
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.ring_kernels import CudaFlashKernel, ProductKernel, choose_kernel
from openrlhf.models.loading import facts_of
from openrlhf.models.token_scorer import ScoringModel, TokenScorer
from openrlhf.parallel.random_streams import compute_deterministically
from openrlhf.run import pair_run
from openrlhf.run.builders import check_layout, read_facts
from openrlhf.strategy import DeepspeedStrategy
from tests.cuda.stand_ins import AMPERE, BLACKWELL, HOPPER, gpu_machine, install, reference
from tests.helpers.tiny_models import tiny_model
from tests.helpers.workbench import flags
from tests.models.batches import assert_close, make_samples, reference_log_probs

BF16_TOLERANCE = 0.05
NOT_INSTALLED = "not flash_attention_2: the package flash-attn is not installed: pip install flash-attn --no-build-iso"


@pytest.fixture
def machine(tmp_path) -> Iterator[Callable[..., None]]:
    """A machine with a GPU; it is called with what is installed, and `capability`."""
    with ExitStack() as machines:

        def set_up(*packages: str, **facts: tuple[int, int]) -> None:
            machines.enter_context(gpu_machine(tmp_path / "site", *packages, **facts))

        set_up()
        yield set_up


def saved(folder: Path, kind: str, **config) -> str:
    tiny_model(kind, **config).save_pretrained(folder)
    return str(folder)


def without_weights(folder: Path, kind: str, **config) -> str:
    """A folder from which no model can be loaded: what is refused here, is refused before weights are read."""
    tiny_model(kind, **config).config.save_pretrained(folder)
    return str(folder)


AUTO = {  # what: (packages, capability, kind, configuration, dtype, chosen, told)
    "nothing installed": ((), AMPERE, "llama", {}, "bf16", "torch_varlen", NOT_INSTALLED),
    "nothing on Hopper": ((), HOPPER, "llama", {}, "bf16", "torch_varlen", "not flash_attention_3: the package flash"),
    "flash-attn": (("flash-attn",), AMPERE, "llama", {}, "bf16", "flash_attention_2", None),
    "fp16": (("flash-attn",), AMPERE, "llama", {}, "fp16", "flash_attention_2", None),
    "flash-attn-4 alone": (("flash-attn-4",), HOPPER, "llama", {}, "bf16", "torch_varlen", "is flash-attn-4"),
    "for another torch": (("broken flash-attn",), AMPERE, "llama", {}, "bf16", "torch_varlen", "undefined symbol"),
    "too old": (("flash-attn==2.2.0",), AMPERE, "llama", {}, "bf16", "torch_varlen", "does not take flash-attn 2.2.0"),
    "both": (("flash-attn", "flash-attn-3"), HOPPER, "llama", {}, "bf16", "flash_attention_3", None),
    "flash-attn-3 on Blackwell": (
        ("flash-attn", "flash-attn-3"), BLACKWELL, "llama", {}, "bf16", "flash_attention_2", None,
    ),
    "dropout": (
        ("flash-attn", "flash-attn-3"), HOPPER, "llama", dict(attention_dropout=0.1), "bf16", "flash_attention_2",
        "not flash_attention_3: it does not know the model's attention dropout",
    ),
    "fp32": (("flash-attn",), AMPERE, "llama", {}, "fp32", "per_sample", "it computes in 16 bits"),
    "large heads": (("flash-attn",), AMPERE, "llama", dict(head_dim=264), "bf16", "per_sample", "heads of size 264"),
    "odd heads": (("flash-attn",), AMPERE, "llama", dict(head_dim=12), "bf16", "per_sample", "heads of size 12"),
    "some heads": (
        ("flash-attn",), AMPERE, "gemma4", {}, "bf16", "torch_varlen", "sample by sample in layers with heads of",
    ),
    "soft cap": (("flash-attn",), AMPERE, "gemma2", {}, "bf16", "flash_attention_2", None),
    "soft cap, no package": ((), AMPERE, "gemma2", {}, "bf16", "per_sample", "every layer has soft-capped scores"),
    "sinks": (("flash-attn",), AMPERE, "gpt_oss", {}, "bf16", "per_sample", "by no flash attention but kernels-comm"),
    "window in the mask alone": (
        ("flash-attn",), AMPERE, "phimoe", {}, "bf16", "torch_varlen", "layers do not tell their attention the window",
    ),
    "an old GPU": (("flash-attn",), (7, 5), "llama", {}, "bf16", "per_sample", "compute capability 8 or later"),
}  # fmt: skip


@pytest.mark.parametrize("case", AUTO)
def test_auto(machine, tmp_path, case):
    packages, capability, kind, config, dtype, chosen, told = AUTO[case]
    machine(*packages, capability=capability)
    path = saved(tmp_path / "model", kind, **config)
    actor = Actor(path, param_dtype=dtype, packing_samples=True)
    assert actor.config._attn_implementation == chosen
    assert (told or "") in actor.attention.note
    assert bool(told) == bool(actor.attention.note), actor.attention.note


@pytest.mark.parametrize(("capability", "kernel"), [((7, 5), ProductKernel), (AMPERE, CudaFlashKernel)])
def test_rings_are_computed_by_flash_attention_where_the_gpu_knows_it(machine, capability, kernel):
    machine(capability=capability)
    query = torch.empty(3, 2, 16, dtype=torch.float16, device="meta")
    assert type(choose_kernel(query, AttentionOptions(scaling=None))) is kernel


@pytest.mark.parametrize(("capability", "told"), [((7, 5), "flash attention: it runs on GPUs of"), (AMPERE, "")])
def test_prompts_are_shared_where_the_gpu_knows_flash_attention(machine, monkeypatch, capability, told):
    machine(capability=capability)
    monkeypatch.setattr(pair_run, "usable_device_type", lambda: "cuda")
    config = DPOConfig(ds=PairDeepspeedConfig(packing_samples=True))
    assert " ".join(pair_run._reasons_against(config, [])).startswith(told)


def test_a_gpu_that_torch_cannot_describe_is_taken_for_a_new_one(machine, monkeypatch):
    def cannot_tell():
        raise RuntimeError("no kernel driver")

    machine("flash-attn")
    monkeypatch.setattr(torch.cuda, "get_device_capability", cannot_tell)
    actor = Actor(tiny_model("llama", torch.bfloat16), packing_samples=True)
    assert actor.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    ("packages", "capability", "name"),
    [
        (("flash-attn",), AMPERE, "flash_attention_2"),
        (("flash-attn-3",), HOPPER, "flash_attention_3"),
        (("flash-attn-4",), HOPPER, "flash_attention_4"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "mistral_window", "gemma2"])
def test_samples_of_a_pack_stay_apart_in_packages(machine, packages, capability, name, kind):
    machine(*packages, capability=capability)
    samples = make_samples()
    expected = reference_log_probs(tiny_model(kind, torch.float64), samples)
    actor = Actor(tiny_model(kind, torch.bfloat16), name, packing_samples=True)
    found = actor.score_targets(**samples.packed()).log_probs
    assert reference.CALLS, "the package's function computed nothing"
    assert_close(found.detach(), expected.detach(), BF16_TOLERANCE, "log-probs")


def test_sinks_are_not_dropped(machine):
    machine("flash-attn-4", capability=HOPPER)
    samples = make_samples()
    expected = reference_log_probs(tiny_model("gpt_oss", torch.float64), samples)
    actor = Actor(tiny_model("gpt_oss", torch.bfloat16), "flash_attention_4", packing_samples=True)
    found = actor.score_targets(**samples.packed()).log_probs
    assert_close(found.detach(), expected.detach(), BF16_TOLERANCE, "log-probs")


REFUSED = {  # what: (packages, kind, configuration, dtype, asked for, told)
    "not installed": ((), "llama", {}, "bf16", "flash_attention_2", "pip install flash-attn --no-build-isolation"),
    "not installed 3": ((), "llama", {}, "bf16", "flash_attention_3", "--no-build-isolation 'git+https"),
    "not installed 4": ((), "llama", {}, "bf16", "flash_attention_4", "pip install --pre flash-attn-4"),
    "flash-attn-4 alone": (("flash-attn-4",), "llama", {}, "bf16", "flash_attention_2", "pip install flash-attn --no"),
    "for another torch": (
        ("broken flash-attn",), "llama", {}, "bf16", "flash_attention_2", "--no-build-isolation --force-reinstall",
    ),
    "flash-attn-3 on Ampere": (("flash-attn-3",), "llama", {}, "bf16", "flash_attention_3", "capability 9, and"),
    "fp32": (("flash-attn",), "llama", {}, "fp32", "flash_attention_2", "--ds.param_dtype bf16"),
    "torch's in fp32": ((), "llama", {}, "fp32", "torch_varlen", "Use per_sample"),
    "large heads": (("flash-attn",), "llama", dict(head_dim=264), "bf16", "flash_attention_2", "multiples of 8 up to"),
    "swapped": (("flash-attn",), "gpt_oss", {}, "bf16", "flash_attention_2", "kernels-community/vllm-flash-attn3"),
    "no kernels": ((), "llama", {}, "bf16", "kernels-community/flash-attn2", "'kernels>={min},<{max}'"),
    "old kernels": (
        ("kernels==0.12.0",), "llama", {}, "bf16", "kernels-community/flash-attn2", "kernels 0.12.0 is installed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_weights_are_read(machine, tmp_path, case):
    packages, kind, config, dtype, name, told = REFUSED[case]
    machine(*packages)
    told = told.format(min=import_utils.KERNELS_MIN_VERSION, max=import_utils.KERNELS_MAX_VERSION)
    path = without_weights(tmp_path / "model", kind, **config)
    with pytest.raises(UserError) as caught:
        Actor(path, name, param_dtype=dtype, packing_samples=True)
    message = str(caught.value)
    assert message.startswith(f"--ds.attn_implementation {name}: ")
    assert told in message
    assert "\n" not in message
    assert message.endswith("Or use auto.")


def test_full_determinism_reaches_flash_attn(machine, monkeypatch):
    machine("flash-attn")
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    actor = Actor(tiny_model("llama", torch.bfloat16), packing_samples=True)
    try:
        compute_deterministically()
        actor.score_targets(**make_samples().packed())
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("FLASH_ATTENTION_DETERMINISTIC")
    assert {call["deterministic"] for call in reference.CALLS} == {True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's own stays"


def test_ring_flash_attn_loads(machine):
    machine("flash-attn", "ring-flash-attn")
    actor = Actor(tiny_model("llama", torch.bfloat16), "ring_flash_attn", packing_samples=True, ring_attn_size=2)
    assert actor.config._attn_implementation == "ring_of_package"
    assert "ring_flash_attn" in sys.modules


def test_liger_says_which_models_it_knows(machine):
    machine("liger-kernel")
    actor = Actor(tiny_model("llama"), use_liger_kernel=True)
    assert actor.model.got_liger_kernels == dict(fused_linear_cross_entropy=False, cross_entropy=False)
    with pytest.raises(UserError, match=r"Liger has no kernels for qwen3 models\. Leave the flag out"):
        Actor(tiny_model("qwen3"), use_liger_kernel=True)


@pytest.mark.parametrize(
    ("packages", "told"),
    [((), "pip install liger-kernel"), (("broken liger-kernel",), "ModuleNotFoundError: No module named 'triton_that")],
)
def test_why_liger_cannot_be_used(machine, packages, told):
    machine(*packages)
    with pytest.raises(UserError, match="--ds.use_liger_kernel.*") as caught:
        Actor(tiny_model("llama"), use_liger_kernel=True)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("llama", dict(ds__attn_implementation="flash_attention_2", ds__packing_samples=True), "16 bits"),
        ("qwen3", dict(ds__use_liger_kernel=True), "Liger has no kernels for qwen3 models"),
        ("gemma2", dict(ds__attn_implementation="sdpa"), "Use eager"),
    ],
)
def test_a_run_is_refused_before_data_are_prepared(machine, tmp_path, kind, changes, told):
    machine("flash-attn", "liger-kernel")
    path = without_weights(tmp_path / "model", kind)
    words = flags(path, tmp_path / "rows.jsonl", tmp_path / "out", **changes)
    (tmp_path / "rows.jsonl").touch()
    config = parse_config(SFTConfig, words)
    with pytest.raises(UserError, match=told):
        check_layout(config, read_facts(config, facts_of))


def test_torch_2_11_is_not_told_of_fewer_key_heads(monkeypatch):
    """Its variable-length attention takes them without a word, and refuses the word."""

    def torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        return reference.varlen(query, key, value, cu_seq_q, max_q, scale=scale, causal=True, window=window_size)

    def operator_of_torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None, window_size=None
    ):
        output = reference.varlen(query, key, value, cu_seq_q, max_q, scale=scale, causal=is_causal, window=(-1, 0))
        return output, output.new_zeros(query.shape[1], query.shape[0]), None

    monkeypatch.setattr(torch_varlen, "varlen_attn", torch_2_11)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", operator_of_torch_2_11)
    samples = make_samples()
    expected = reference_log_probs(tiny_model("mistral_window", torch.float64), samples)
    model = tiny_model("mistral_window", torch.bfloat16)
    model.set_attn_implementation("torch_varlen")
    found = ScoringModel(TokenScorer(model, 1.0), 0).score_targets(**samples.packed()).log_probs
    assert_close(found.detach(), expected.detach(), BF16_TOLERANCE, "log-probs")

    query, key = (torch.randn(32, heads, 16, dtype=torch.bfloat16) for heads in (4, 2))
    borders = (samples.cu_seqlens, samples.cu_seqlens, max(samples.lengths), max(samples.lengths))
    output, _ = cuda_flash(query, key, key, borders, is_causal=True, scale=None)
    assert output.shape == query.shape


def test_kernels_of_the_hub_come_by_transformers_own_loading(tmp_path):
    """In a process of its own: transformers looks for the package `kernels` when it is imported itself."""
    install(tmp_path, "kernels")
    code = (
        "import torch; torch.cuda.is_available = lambda: True; torch.cuda.get_device_capability = lambda: (8, 0)\n"
        "import kernels; from openrlhf.models import Actor; from tests.helpers.tiny_models import tiny_model\n"
        "name = 'kernels-community/flash-attn2'\n"
        "actor = Actor(tiny_model('llama', torch.bfloat16), name, packing_samples=True)\n"
        "print(actor.config._attn_implementation == name, kernels.GOT == [name])\n"
        "actor = Actor(tiny_model('gpt_oss', torch.bfloat16), packing_samples=True)\n"
        "print(actor.config._attn_implementation, kernels.GOT == [name])\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "per_sample", "True"], done.stderr


def test_a_run_that_asks_for_determinism_gets_it(one_rank):
    assert one_rank.run(_determinism_of_a_run) == [("1", True)]


def _determinism_of_a_run() -> tuple[str | None, bool]:
    strategy = DeepspeedStrategy(full_determinism=True)
    strategy.setup_distributed()
    try:
        return os.environ.get("FLASH_ATTENTION_DETERMINISTIC"), torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("FLASH_ATTENTION_DETERMINISTIC", None)
