"""ZeRO-3 with models that are tiny."""

from __future__ import annotations

from typing import Any


def gather_all_weights(engine: Any) -> None:
    """As those of a large model: ZeRO-3 keeps small ones, and so all of a tiny model, whole on every rank.

    Does nothing to an engine of another stage.
    """
    if engine.zero_optimization_stage() < 3:
        return
    engine.optimizer.persistent_parameters.clear()
    for parameter in engine.module.parameters():
        parameter.ds_persist = False
