"""Weights that a folder holds apart are compared whole before transformers ties them under ZeRO-3.

Reason: a config.json may say that input and output embeddings are tied while the files hold two, of unlike values.
transformers then compares the two and leaves them apart. ZeRO-3 leaves empty tensors in the weights' place, any two of
which are equal: transformers would tie them, without a word, and another model would be trained.

Change: while a model is loaded in parts, the weights that may be tied are whole during transformers' `tie_weights`.

Upstream: none known.
Another version of transformers: applied; the method is public.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from openrlhf.engine.parameters import gathered
from openrlhf.engine.patches.patch import Patch

PATCH = Patch("tied_in_parts", "transformers", "5", applies_to_others=True, without_it="weights are tied unseen")


@contextmanager
def compared_whole() -> Iterator[None]:
    """Within, `tie_weights` of every model sees whole weights. Ranks that share a model tie it together."""
    if not PATCH.is_on():
        yield
        return
    tie_parts = PreTrainedModel.tie_weights

    def tie_whole(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        names = {name for pair in self.all_tied_weights_keys.items() for name in pair}
        with gathered(weight for name, weight in self.named_parameters() if name in names):
            tie_parts(self, *args, **kwargs)

    PreTrainedModel.tie_weights = tie_whole  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel.tie_weights = tie_parts  # type: ignore[method-assign]
