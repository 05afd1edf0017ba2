"""Products of bfloat16 made in float32: as exact as float64 rounded, and no other product touched."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import library

from openrlhf.engine.patches import float32_products
from openrlhf.engine.patches.patch import SWITCH
from openrlhf.models import Actor, prepared_model
from openrlhf.rejection.engines import transformers_engine
from tests.helpers.tiny_models import tiny_model

ROUNDED = 1.0  # of one result, in units of bfloat16's rounding
ROUNDED_TWICE = 2.5  # of a gradient, whose terms come of rounded results

_BOTH_WAYS = (
    "mm", "mm of transposed", "mm.out", "mm without rows", "mm of no terms", "bmm", "bmm.out",
    "addmm", "addmm.out", "addmm.out into the sum", "addmm_", "baddbmm", "baddbmm_",
)  # fmt: skip
_GRADIENTS = ("linear", "attention", "attention with a mask")


@pytest.fixture(scope="module")
def errors():
    """By the case's name. In a process of its own: what is changed of torch stays changed."""
    words = [sys.executable, "-m", "tests.engine.float32_products"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {line["case"]: line["error"] for line in lines}


@pytest.mark.parametrize("pieces", ["", "in pieces: "])
@pytest.mark.parametrize("case", _BOTH_WAYS)
def test_a_product_is_rounded_once(errors, case, pieces):
    assert errors[pieces + case] <= ROUNDED


@pytest.mark.parametrize("operand", [0, 1, 2])
@pytest.mark.parametrize("operator", _GRADIENTS)
def test_gradients_are_those_of_float64(errors, operator, operand):
    assert errors[f"gradient {operand} of {operator}"] <= ROUNDED_TWICE


@pytest.mark.parametrize("case", ["float32 is torch's", "float16 is torch's", "two types are refused"])
def test_other_numbers_go_to_torch(errors, case):
    assert errors[case] == 0


def test_nothing_is_changed_where_the_processor_has_products_of_bfloat16(monkeypatch):
    monkeypatch.setattr(float32_products, "has_bfloat16_products", lambda: True)
    monkeypatch.setattr(library, "Library", None)
    assert not float32_products.multiply_in_float32.__wrapped__()


def test_the_switch_of_patches_holds(monkeypatch):
    monkeypatch.setattr(float32_products, "has_bfloat16_products", lambda: False)
    monkeypatch.setattr(library, "Library", None)
    monkeypatch.setenv(SWITCH, "off")
    assert not float32_products.multiply_in_float32.__wrapped__()


@pytest.mark.parametrize(
    ("dtype", "has_gpu", "is_asked"),
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False)],
)
def test_models_of_bfloat16_on_the_cpu_ask_for_it(monkeypatch, dtype, has_gpu, is_asked):
    asked = []
    monkeypatch.setattr(float32_products, "multiply_in_float32", lambda: asked.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    float32_products.multiply_fast(torch.nn.Linear(2, 2, dtype=dtype))
    assert bool(asked) == is_asked


def test_a_model_that_is_trained_asks_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(prepared_model, "multiply_fast", lambda model: asked.append(model.dtype))
    Actor(tiny_model("llama").bfloat16())
    assert asked == [torch.bfloat16]


def test_a_model_whose_engine_changes_its_precision_asks_again(monkeypatch):
    actor = Actor(tiny_model("llama"))
    asked = []
    monkeypatch.setattr(prepared_model, "multiply_fast", lambda model: asked.append(next(model.parameters()).dtype))
    actor.attach_engine(actor.trainable_module.bfloat16())
    assert asked == [torch.bfloat16]


def test_a_model_that_answers_asks_for_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(transformers_engine, "multiply_fast", lambda model: asked.append(model.dtype))
    tiny_model("llama").save_pretrained(tmp_path)
    transformers_engine.load_for_answers(str(tmp_path), "bf16", trust_remote_code=False)
    assert asked == [torch.bfloat16]
