"""Bugs of compiled layers and of what runs on CUDA alone, which the means of tests/cuda/ show on any machine."""

from __future__ import annotations

from tests.planted.bug import Bug

_COMPILED = "tests/cuda/test_compiled_layers.py"

BUGS = [
    Bug(
        "checkpointing_is_compiled_with_the_layer",
        "with gradient checkpointing --model.compile_layers compiles nothing, in silence",
        "models/layers.py",
        "layer.__class__ = _compiled_class(type(layer))",
        "layer.compile(dynamic=True)",
        (f"{_COMPILED}::test_new_lengths_make_no_new_graphs",),
    ),
    Bug(
        "each_length_is_compiled",
        "every new length of a pack is compiled anew, for minutes",
        "models/layers.py",
        "torch.compile(layer_class.forward, dynamic=True)",
        "torch.compile(layer_class.forward, dynamic=False)",
        (f"{_COMPILED}::test_new_lengths_make_no_new_graphs",),
    ),
    Bug(
        "nothing_compiled_is_not_told",
        "--model.compile_layers changes nothing, and nobody is told",
        "models/layers.py",
        "if is_first and num_compiled_graphs() == num_graphs:",
        "if is_first and num_compiled_graphs() < num_graphs:",
        (f"{_COMPILED}::test_layers_of_which_nothing_is_compiled_are_named_once",),
    ),
]
