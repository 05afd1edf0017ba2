"""What a model or a machine cannot do is said before data is prepared."""

from __future__ import annotations

import pytest

from openrlhf.errors import UserError
from openrlhf.models import limits


def test_float16_is_refused_where_the_processor_lacks_it(monkeypatch):
    monkeypatch.setattr(limits, "cpu_computes_fp16", lambda: False)
    with pytest.raises(UserError, match="--ds.param_dtype fp16: .* Use bf16 or fp32"):
        limits.check_dtype("fp16", "cpu")
    limits.check_dtype("bf16", "cpu")
    limits.check_dtype("fp16", "cuda")


def test_float16_is_taken_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(limits, "cpu_computes_fp16", lambda: True)
    limits.check_dtype("fp16", "cpu")
