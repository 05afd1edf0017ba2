"""Bugs in what the last layer leaves out."""

from __future__ import annotations

from tests.planted.bug import Bug

_FILE, _TESTS = "models/last_layer.py", "tests/models/test_last_layer.py::"

BUGS = [
    Bug(
        "attention_sees_read_tokens_alone",
        "the last layer's attention is given the tokens that are read, in place of all",
        _FILE,
        "_now.all if _now.is_short else rows",
        "rows",
        (_TESTS + "test_log_probs_and_gradients_stay_the_same",),
    ),
    Bug(
        "a_layer_of_another_form_is_cut",
        "nobody looks whether a layer's form is the usual one",
        _FILE,
        "return found.shape == expected.shape and",
        "return True or",
        (_TESTS + "test_an_mlp_that_looks_at_other_tokens_computes_all",),
    ),
    Bug(
        "a_recomputed_layer_is_cut",
        "a layer that is recomputed in the backward pass finds no places then",
        _FILE,
        "places if self._is_usual and not recomputes else None",
        "places if self._is_usual else None",
        (_TESTS + "test_a_recomputed_layer_computes_all",),
    ),
    Bug(
        "the_layer_alone_is_asked_whether_it_is_recomputed",
        "a layer of which a part is recomputed finds no places then",
        "models/last_layer.py",
        "for module in self._backbone.modules()",
        "for module in (self._layer,)",
        ("tests/models/test_last_layer.py::test_a_layer_whose_parts_alone_are_recomputed_computes_all",),
    ),
]
