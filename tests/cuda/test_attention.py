"""The choice of attention on a machine with CUDA, by stand-in packages and transformers' own loading of them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from transformers.utils import import_utils

from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.parallel.random_streams import compute_deterministically
from tests.cuda.stand_ins import install, reference
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples, reference_log_probs

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
STAND_INS = ("flash_attn", "flash_attn_interface", "ring_flash_attn", "kernels")
BF16_TOLERANCE = 0.05
NOT_INSTALLED = "not flash_attention_2: the package flash-attn is not installed: pip install flash-attn --no-build-iso"


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Callable[..., None]:
    """A machine with a GPU, as far as transformers and we can tell; it is called with what is installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site").mkdir()

    def set_up(*packages: str, capability: tuple[int, int] = AMPERE) -> None:
        install(tmp_path / "site", *packages)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        _forget_what_is_installed()

    set_up()
    yield set_up
    monkeypatch.undo()
    _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    reference.CALLS.clear()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] in STAND_INS]:
        del sys.modules[name]
    for value in vars(import_utils).values():
        getattr(value, "cache_clear", lambda: None)()


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
    assert len(reference.CALLS) == actor.config.num_hidden_layers
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
