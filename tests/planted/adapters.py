"""Bugs of adapters, frozen weights and merged models."""

from __future__ import annotations

from tests.planted.bug import Bug

_MODELS = "tests/models/test_adapters.py::test_"
_RUNS = "tests/runs/test_adapters.py::test_"
_CHECKS = "tests/config/test_checks.py::test_"

BUGS = [
    Bug(
        "rslora_is_plain_lora",
        "rsLoRA is asked for, and the adapters are scaled as LoRA's",
        "models/lora.py",
        "        use_rslora=lora.use_rslora,\n",
        "",
        ("tests/equivalence/test_adapters.py",),
    ),
    Bug(
        "trained_head_makes_full_logits",
        "with modules_to_save lm_head all logits are held in memory",
        "models/token_scorer.py",
        'isinstance(getattr(head, "original_module", head), LogProbHead)',
        "isinstance(head, LogProbHead)",
        (f"{_MODELS}a_head_that_is_trained_stays_thrifty",),
    ),
    Bug(
        "an_adapter_to_start_from_is_not_loaded",
        "a run that goes on from an adapter begins with a new one",
        "models/lora.py",
        "        _load_adapter(with_adapters, lora.adapter_name_or_path)\n",
        "",
        (f"{_MODELS}training_goes_on_from_an_adapter",),
    ),
    Bug(
        "half_an_adapter_is_loaded",
        "a weight that the adapter's folder lacks begins anew, without a word",
        "models/lora.py",
        "[*sorted(trained & {*found.missing_keys}), *sorted(found.unexpected_keys)]",
        "sorted(found.unexpected_keys)",
        (f"{_MODELS}an_adapter_that_does_not_fit_is_refused",),
    ),
    Bug(
        "a_wrong_name_is_passed_over",
        "a module to save that is misspelt is not trained, without a word",
        "models/lora.py",
        "    _check_names(model, lora)\n",
        "",
        (f"{_MODELS}what_the_model_does_not_have_is_refused_by_name",),
    ),
    Bug(
        "numbers_of_layers_reach_the_head",
        "with layers_to_transform the head gets an adapter, too",
        "models/lora.py",
        ' if re.search(r"\\.\\d+\\.", name)})',
        "})",
        (f"{_MODELS}numbers_of_layers_leave_the_head_alone",),
    ),
    Bug(
        "all_is_trained",
        "--model.trainable freezes nothing",
        "models/lora.py",
        "parameter.requires_grad_(id(parameter) in trained)",
        "parameter.requires_grad_(True)",
        (f"{_MODELS}weights_are_frozen_by_pattern",),
    ),
    Bug(
        "frozen_weights_of_another_model",
        "a run with frozen weights goes on over another base",
        "trainer/command_trainer.py",
        "    return not all(parameter.requires_grad for parameter in model.parameters())",
        '    return hasattr(model, "peft_config")',
        (f"{_RUNS}frozen_weights_are_the_bases_and_another_base_is_refused",),
    ),
    Bug(
        "merged_head_is_tied_again",
        "an adapter of the embeddings is merged into the head as well",
        "run/merge.py",
        "    is_tied = torch.equal(head.weight, embedding.weight)\n",
        "",
        (f"{_MODELS}a_merged_model_has_the_same_log_probs",),
    ),
    Bug(
        "the_last_adapter_alone_is_merged",
        "of several adapters all but the last are lost",
        "run/merge.py",
        "        for lora_path in lora_paths:\n",
        "        for lora_path in lora_paths[-1:]:\n",
        (f"{_MODELS}several_adapters_are_merged_one_after_the_other",),
    ),
    Bug(
        "finished_without_a_merged_model",
        "a run that was killed before it merged says that it has finished",
        "config/settings.py",
        "return (self.output_dir, self.merged_dir) if self.merge_lora else (self.output_dir,)",
        "return (self.output_dir,)",
        (f"{_RUNS}the_merged_model_stands_beside_the_adapter_and_is_made_again",),
    ),
    Bug(
        "dora_in_parts",
        "DoRA under ZeRO-3 fails after the model is loaded, with shapes that do not fit",
        "config/adapter_settings.py",
        "    if zero_stage == 3:\n",
        "    if zero_stage > 3:\n",
        (f"{_CHECKS}adapters_that_cannot_be_are_refused_by_their_flag",),
    ),
    Bug(
        "an_adapter_that_looks_like_a_model",
        "with the base's config.json beside it, transformers looks for the base's weights in the adapter's folder",
        "checkpoint/model_settings.py",
        "    if base is model:\n",
        "    if True:\n        model = base\n",
        (f"{_MODELS}a_server_finds_what_it_reads_beside_the_adapter",),
    ),
    Bug(
        "a_merge_of_random_weights",
        "lora_combiner merges an adapter into random numbers where the base lacks a weight",
        "run/merge.py",
        "    check_weights(model, without_other_parts(info, model, config, model_path), model_path)\n",
        "",
        (f"{_MODELS}a_merge_of_what_is_not_whole_is_refused",),
    ),
    Bug(
        "half_an_adapter_is_merged",
        "lora_combiner merges what it finds of an adapter, and says nothing of what is missing",
        "run/merge.py",
        "    with_adapter: Any = add_lora(model, LoraConfig(adapter_name_or_path=lora_path))\n",
        "    from peft import PeftModel\n\n    with_adapter: Any = PeftModel.from_pretrained(model, lora_path)\n",
        (f"{_MODELS}a_merge_of_what_is_not_whole_is_refused",),
    ),
    Bug(
        "another_base_is_not_told",
        "an adapter is merged into a base that is not its own, without a word",
        "run/merge.py",
        "if base and Path(base).name != Path(model_path).name:",
        "if False:",
        (f"{_MODELS}a_merge_into_another_base_is_told",),
    ),
    Bug(
        "load_model_makes_weights_up",
        "strategy.load_model fills what the folder lacks with random numbers",
        "models/loading.py",
        "    if say is None:\n        check_weights(model, info, path)\n",
        "",
        ("tests/checkpoint/test_reward_export.py::test_weights_that_an_export_lacks_are_not_made_up",),
    ),
]
