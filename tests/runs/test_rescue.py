"""What is said of the weights of a run whose export fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.config import CkptConfig
from openrlhf.run.rescue import Rescue


@pytest.mark.parametrize("newest", ["global_step4", "global_step9"])
def test_best_weights_are_not_saved_as_those_of_the_last_step(monkeypatch: pytest.MonkeyPatch, newest: str) -> None:
    trained = SimpleNamespace(went_back_to_step=4)
    groups, progress = SimpleNamespace(control=None), SimpleNamespace(optimizer_step=9)
    trainer: Any = SimpleNamespace(trained=trained, progress=progress, strategy=SimpleNamespace(groups=groups))
    rescue = Rescue(trainer, CkptConfig(path="kept"), RunIdentity())
    monkeypatch.setattr(Rescue, "_newest_name", lambda self: newest)
    monkeypatch.setattr(Rescue, "_save", lambda self: pytest.fail("the engine holds the weights of step 4"))
    told = rescue._after_failed_export()
    if newest == "global_step9":
        assert "kept/global_step9" in told
    else:
        assert "The best weights are in the checkpoint kept/global_step4." in told
        assert "goes on from global_step4" in told
