"""Each layer through torch.compile, which fuses what stands between its matrix products."""

from __future__ import annotations

from typing import Any

from openrlhf.errors import UserError


def compile_layers(model: Any) -> None:
    """Compiles the layers of a model of transformers in place, when they are first called; lengths may differ.

    Layer by layer and not the model as a whole: equal layers share one compiled form, and attention, which is a kernel
    of its own, stays as it is.

    Raises:
        UserError: the model does not say what its layers are.
    """
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    if not layers:
        raise UserError(f"{type(model).__name__} does not name its layers: leave --model.compile_layers out.")
    for layer in layers:
        layer.compile(dynamic=True)
