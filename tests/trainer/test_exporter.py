"""Models exported along the way: the room that they ask for, and what a failed one leaves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model

from openrlhf.checkpoint.store import EXPORT_SUFFIX, CheckpointStore
from openrlhf.errors import UserError
from openrlhf.trainer import exporter
from openrlhf.trainer.exporter import ExporterAlongTheWay
from tests.helpers.tiny_models import tiny_model


def exporter_of(model, store) -> ExporterAlongTheWay:
    strategy = SimpleNamespace(groups=SimpleNamespace(control=None), is_rank_0=lambda: True)
    identity = SimpleNamespace(to_dict=dict)
    return ExporterAlongTheWay(strategy, SimpleNamespace(model=model), None, store, "5GB", identity)  # type: ignore


def test_an_adapter_asks_for_its_own_room():
    asked = []
    store = SimpleNamespace(begin=lambda step, size_bytes: asked.append(size_bytes))
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    exporter_of(model, store)._begin(1)
    assert asked == [4 * sum(p.numel() for p in model.parameters() if p.requires_grad)]


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(exporter, "write_model", fail)
    found = exporter_of(tiny_model("llama"), CheckpointStore(tmp_path, suffix=EXPORT_SUFFIX)).export(1, None)
    assert found == ("the disk is full",)
    assert list(tmp_path.iterdir()) == []
