"""Models exported along the way: the room that they ask for, and what a failed one leaves."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model

from openrlhf.checkpoint.checkpointer import SaveReport
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import EXPORT_SUFFIX, CheckpointStore
from openrlhf.config import CkptConfig
from openrlhf.errors import UserError
from openrlhf.trainer import exporter
from openrlhf.trainer.callbacks import standard
from openrlhf.trainer.callbacks.saving import SavesFailed, Saving
from openrlhf.trainer.exporter import ExporterAlongTheWay
from openrlhf.watchdog.watchdog import Watchdog
from tests.helpers.tiny_models import tiny_model


def exporter_of(model, store) -> ExporterAlongTheWay:
    strategy = SimpleNamespace(groups=SimpleNamespace(control=None), is_rank_0=lambda: True)
    identity = SimpleNamespace(to_dict=dict)
    return ExporterAlongTheWay(strategy, SimpleNamespace(model=model), None, store, 5 * 10**9, identity)  # type: ignore


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
    fails = exporter_of(tiny_model("llama"), CheckpointStore(tmp_path, suffix=EXPORT_SUFFIX))
    assert fails.export(1, None) == SaveReport(("the disk is full",), 1)
    assert fails.export(2, None) == SaveReport(("the disk is full",), 2)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(exporter, "write_model", lambda *_: None)
    assert fails.export(3, None) == SaveReport((), 0)


@pytest.mark.parametrize("has_checkpoints", [False, True])
def test_exports_that_fail_end_a_run_that_saves_nothing_else(has_checkpoints):
    fails = SimpleNamespace(export=lambda step, loss: SaveReport(("the disk is full",), step))
    saves = SimpleNamespace(save=lambda *_: SaveReport((), 0)) if has_checkpoints else None
    saving = Saving(saves, fails, CkptConfig(max_failed_saves_in_a_row=2), None)  # type: ignore[arg-type]
    strategy = SimpleNamespace(print=lambda words: None, watchdog=Watchdog())
    trained = SimpleNamespace(engine=None, scheduler=None)
    trainer = SimpleNamespace(strategy=strategy, trained=trained, states_to_save={}, emit=lambda *_: None)
    for step in (1, 2):
        trainer.progress = TrainingProgress(optimizer_step=step)
        is_too_often = step == 2 and not has_checkpoints
        with pytest.raises(SavesFailed, match="2 saves in a row") if is_too_often else nullcontext():
            saving.save(trainer)  # type: ignore[arg-type]


def test_a_run_without_its_last_checkpoint_says_so_at_its_end(tmp_path):
    """It ends well, as its model is exported."""
    fails = SimpleNamespace(wait=lambda: SaveReport(("rank 1: no such file",), 1))
    saving, said = Saving(fails, None, CkptConfig(path=str(tmp_path), save_steps=2), None), []  # type: ignore[arg-type]
    strategy = SimpleNamespace(print=said.append, watchdog=Watchdog())
    trainer = SimpleNamespace(strategy=strategy, progress=TrainingProgress(optimizer_step=4, finished=True))
    saving.on_exit(trainer, None)  # type: ignore[arg-type]
    last = tmp_path / "global_step4"
    end = f"warning: {last} is not there, its save has failed: nothing can go on from it."
    assert said == ["warning: rank 1: no such file", end]
    last.mkdir()  # of a save before the one that failed
    saving.on_exit(trainer, None)  # type: ignore[arg-type]
    assert said[2:] == said[:1]
    last.rmdir()
    by_request = Saving(fails, None, CkptConfig(path=str(tmp_path)), None)  # type: ignore[arg-type]
    by_request.on_exit(trainer, None)  # type: ignore[arg-type]
    assert said[3:] == said[:1], "it was to save nothing at its end"


def test_exports_along_the_way_are_kept_within_the_same_bytes(tmp_path):
    strategy = SimpleNamespace(checkpointers=SimpleNamespace(of=lambda *_: None))
    trainer = SimpleNamespace(strategy=strategy, save_hf_ckpt=True, disable_ds_ckpt=True, model=None, tokenizer=None)
    ckpt = CkptConfig(path=str(tmp_path), max_mem=0.5, max_num=7)
    saving = standard._saving(trainer, ckpt, SimpleNamespace(to_dict=dict))  # type: ignore[arg-type]
    store = saving._exporter._store
    assert (store.max_num, store.max_bytes, store.name_of(1)) == (7, 2**29, "global_step1_hf")
