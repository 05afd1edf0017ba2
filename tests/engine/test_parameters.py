"""What is asked of parameters as they are whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from openrlhf.engine.parameters import names_of_non_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_parameters_with_a_nan_or_an_infinity_are_named(dtype):
    values = {"whole": 0.0, "nan": math.nan, "over": math.inf, "under": -math.inf}
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(3, dtype=dtype)) for name in values})
    model["large"] = nn.Parameter(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))  # whose sum is not finite
    with torch.no_grad():
        for name, value in values.items():
            model[name][1] = value
    assert sorted(names_of_non_finite(model)) == ["nan", "over", "under"]


def test_finite_parameters_take_no_memory_to_look_at():
    model = nn.Linear(1 << 13, 1 << 13, bias=False, dtype=torch.bfloat16)
    names_of_non_finite(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _bytes("VmRSS")
    assert names_of_non_finite(model) == []
    assert _bytes("VmHWM") - before < model.weight.nbytes / 4


def _bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
