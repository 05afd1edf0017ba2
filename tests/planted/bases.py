"""Bugs of what a base model is: quantized, one part of a composite, an encoder, of how many positions."""

from __future__ import annotations

from tests.planted.bug import Bug

_QUANTIZED = "tests/models/test_quantized.py::test_"
_TEXT_PART = "tests/models/test_text_part.py::test_"
_POSITIONS = "tests/models/test_limits.py::test_positions_are_those_that_a_scaling_makes"
_PROBE = "tests/models/test_layout_probe.py::test_"
_CHOICE = "tests/models/test_attention_choice.py::test_"

BUGS = [
    Bug(
        "a_plain_base_is_exported_quantized",
        "the export of a base in fp8 is in fp8 again, and its config says that it is not",
        "models/quantized.py",
        "if quantization_of(config) in MADE_PLAIN:",
        "if False:",
        (f"{_QUANTIZED}weights_are_exported_plain",),
    ),
    Bug(
        "bases_of_other_formats_pass",
        "a base in GPTQ is trained, though its weights get no gradient",
        "models/quantized.py",
        "    if method not in MADE_PLAIN:\n        as_it_is",
        "    if False:\n        as_it_is",
        (f"{_QUANTIZED}what_cannot_be_trained_is_refused_with_the_remedy",),
    ),
    Bug(
        "blocks_that_do_not_divide_pass",
        "a base in fp8 whose blocks do not divide a matrix is read with wrong scales",
        "models/quantized.py",
        'if quantization_of(config) == "fp8":',
        "if False:",
        (f"{_QUANTIZED}blocks_that_do_not_divide_a_matrix_are_refused",),
    ),
    Bug(
        "a_composite_is_a_damaged_model",
        "Llama 4 is refused, as its weights that see are taken for extra ones",
        "models/loading.py",
        "check_weights(model, without_other_parts(info, model, config, path), path)",
        "check_weights(model, info, path)",
        (f"{_TEXT_PART}the_text_part_is_loaded_and_told_of",),
    ),
    Bug(
        "a_composite_is_unknown_before_it_is_read",
        "neither memory nor attention of Llama 4 can be told before it is loaded",
        "models/loading.py",
        "ModelFacts(model_class, trained_part(config, model_class),",
        "ModelFacts(model_class, config,",
        (f"{_TEXT_PART}it_is_known_before_it_is_read",),
    ),
    Bug(
        "extra_weights_of_a_composite_pass",
        "a composite whose text part has more layers than its config says is trained without them",
        "models/text_part.py",
        '{name for name in info["unexpected_keys"] if _head_of(name) in own}',
        "set()",
        (f"{_TEXT_PART}more_weights_of_the_text_part_are_still_refused",),
    ),
    Bug(
        "a_rope_scaling_adds_no_positions",
        "a context that is extended by YaRN as the model's card says is refused",
        "models/limits.py",
        '_EXTENDING = ("linear", "yarn")',
        "_EXTENDING = ()",
        (_POSITIONS,),
    ),
    Bug(
        "a_dynamic_rope_ends",
        "a model whose positions grow with the text is refused longer samples",
        "models/limits.py",
        'if any("dynamic" in rope_type for rope_type, _ in scalings):',
        "if False:",
        (_POSITIONS,),
    ),
    Bug(
        "probabilities_of_routers_are_softened_twice",
        "the balancing loss of Gemma 4 hardly moves its routers",
        "models/prepared_model.py",
        "if self._routers_tell_probabilities:",
        "if False:",
        ("tests/models/test_moe.py::test_routers_that_tell_probabilities_are_not_softened_twice",),
    ),
    Bug(
        "padded_encoders_are_trained",
        "BERT as an encoder is trained in padded batches, and learns to read off the targets that it sees",
        "models/causality.py",
        "return bool(flags) and not any(flags)",
        "return False",
        (f"{_CHOICE}an_encoder_is_refused_in_every_layout",),
    ),
    Bug(
        "a_bidirectional_config_is_not_read",
        "Gemma with use_bidirectional_attention is trained on targets that it sees",
        "models/causality.py",
        "if looks_ahead(config.get_text_config()) or (model is not None",
        "if (model is not None",
        (f"{_CHOICE}bidirectional_attention_is_refused_before_weights_are_read",),
    ),
    Bug(
        "encoders_that_do_not_say_so_are_trained",
        "RoFormer as an encoder is trained on targets that it sees",
        "models/causality.py",
        "return bool((one - other).norm() > _ROUNDING * one.norm())",
        "return False",
        (f"{_CHOICE}an_encoder_that_takes_no_other_attention_is_refused_by_what_it_computes",),
    ),
    Bug(
        "a_quantized_model_is_prepared_for_training",
        "a script trains a model whose weights get no gradient",
        "strategy/strategy.py",
        "        check_trainable(model.config)\n",
        "",
        (f"{_QUANTIZED}a_model_that_is_trained_may_not",),
    ),
    Bug(
        "a_model_that_is_only_asked_must_be_plain",
        "a quantized reward model cannot score, nor a quantized reference be one",
        "models/quantized.py",
        "    if load_in_4bit:\n        check_quantization(config, path, load_in_4bit)\n        return config\n",
        "    check_quantization(config, path, load_in_4bit)\n    if load_in_4bit:\n        return config\n",
        (f"{_QUANTIZED}a_model_that_is_only_asked_may_be_quantized_by_any_method",),
    ),
    Bug(
        "empty_parts_are_tied",
        "ZeRO-3 ties two embeddings that a folder holds, as its config.json says, and trains another model",
        "engine/patches/tied_in_parts.py",
        "for name, weight in self.named_parameters() if name in names",
        "for name, weight in ()",
        (
            "tests/models/test_zero3.py"
            "::test_embeddings_that_the_files_hold_apart_stay_apart_though_the_configuration_ties_them",
        ),
    ),
    Bug(
        "a_mask_that_is_cut_to_the_whole_is_refused",
        "Gemma 4 with layers that share keys cannot be trained as it comes",
        "models/attention/per_sample.py",
        "if any(part not in (slice(None), slice(0, None)) for part in parts):",
        "if True:",
        (f"{_PROBE}a_mask_that_is_not_written_out_can_be_cut_to_the_whole_alone",),
    ),
    Bug(
        "an_attention_that_fails_ends_the_run",
        "a model that our attention does not fit ends by a traceback, though another attention computes it",
        "models/layout_probe.py",
        "if not self.is_plain_pack or is_out_of_memory(error) or is_lost_rank(error):",
        "if True:",
        (f"{_PROBE}an_attention_that_fails_on_a_model_is_passed_over",),
    ),
    Bug(
        "a_head_of_language_is_known_by_one_name",
        "GPT-NeoX cannot be a reward model, as its head of language is called an extra weight",
        "models/classifier.py",
        "if name not in own and name not in in_files",
        "if name not in own",
        ("tests/models/test_reward_model.py::test_a_head_of_language_that_files_call_otherwise_is_no_extra_weight",),
    ),
    Bug(
        "layers_of_gpt2_are_not_linear",
        "layers of GPT-2 cannot be chosen by their numbers",
        "models/lora.py",
        "isinstance(module, nn.Linear | Conv1D)",
        "isinstance(module, nn.Linear)",
        ("tests/models/test_adapters.py::test_numbers_of_layers_leave_the_head_alone",),
    ),
    Bug(
        "rounded_routers_are_not_named",
        "routers that transformers keeps in float32 are trained and exported in bf16 without a word",
        "engine/trained_model.py",
        "    _tell_of_rounded_weights(model, config, say)\n",
        "",
        ("tests/engine/test_trained_model.py::test_weights_that_transformers_would_not_round_are_named",),
    ),
]
