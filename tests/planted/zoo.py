"""Planted bugs that the zoo's cross-section catches: what shows in some types of models alone."""

from __future__ import annotations

from tests.planted.bug import Bug

_ZOO = "tests/zoo/test_cross_section.py::test_a_model_is_trained_right_or_refused"
_EXPORT = "tests/checkpoint/test_export.py::test_"

BUGS = [
    Bug(
        "window_forgotten_in_packs",
        "packed samples longer than a model's window see all of their tokens",
        "models/attention/per_sample.py",
        "options = replace(options, window=attention_mask.window)",
        "options = replace(options, window=None)",
        (f"{_ZOO}[qwen2, sliding window]",),
    ),
    Bug(
        "hybrids_of_attention_alone_cannot_be_packed",
        "Granite 4's dense models, whose class knows state-space layers, are refused in packs",
        "models/attention/choice.py",
        "if carries_state(model_class) and not layer_types:",
        "if carries_state(model_class):",
        (f"{_ZOO}[granitemoehybrid, attention only]",),
    ),
    Bug(
        "positions_run_on_in_packs",
        "a model with learned positions cannot be packed, or counts them through the pack",
        "batching/micro_batch.py",
        "position_ids=torch.cat([torch.arange(b, b + n) for b, n in zip(begins, lengths, strict=True)])[None],",
        "position_ids=torch.arange(sum(lengths))[None],",
        (f"{_ZOO}[gpt2]",),
    ),
    Bug(
        "aux_loss_of_each_micro_batch_counts_whole",
        "the more micro-batches a step has, the more its load-balancing loss weighs",
        "trainer/step.py",
        "return micro_batch.num_tokens / counts.num_tokens_global",
        "return 1.0",
        (f"{_ZOO}[mixtral]",),
    ),
    Bug(
        "exported_composite_gains_a_field",
        "an exported model of text and pictures has a configuration that a plain save would not have",
        "checkpoint/model_settings.py",
        'if hasattr(part, "use_cache"):',
        "if True:",
        (f"{_ZOO}[gemma3]",),
    ),
    Bug(
        "positions_counted_from_another_pad_token",
        "a model of RoBERTa's family is exported with the tokenizer's pad token, and counts its positions from there",
        "checkpoint/model_settings.py",
        "    if (row := padding_position(model)) is not None:\n        return row\n",
        "",
        (f"{_EXPORT}a_pad_token_that_positions_depend_on_stays_in_the_config",),
    ),
    Bug(
        "a_pad_token_without_an_embedding_is_exported",
        "a pad token was added without a resize: the training ends well, and nothing opens its model",
        "checkpoint/model_settings.py",
        "if id_ not in ends and has_embedding(model.config, id_)), None)",
        "if id_ not in ends), None)",
        (f"{_EXPORT}a_pad_token_without_an_embedding_is_left_out_and_told",),
    ),
    Bug(
        "answers_padded_without_an_embedding",
        "with a pad token that the model has no embedding for, prompts of two lengths end the run or the generation",
        "models/limits.py",
        "if pad_token_id is not None and has_embedding(config, pad_token_id) else 0",
        "if pad_token_id is not None else 0",
        (
            "tests/runs/test_answers.py::test_a_pad_token_without_an_embedding_stands_in_no_prompt",
            "tests/rejection/test_transformers_engine.py::test_a_pad_token_without_an_embedding_stands_in_no_batch",
        ),
    ),
    Bug(
        "a_reward_model_pads_without_an_embedding",
        "an exported reward model whose pad token was added without a resize does not open",
        "checkpoint/model_settings.py",
        "    is_beyond = _pads_beyond(model, tokenizer)\n",
        "    is_beyond = False\n",
        ("tests/checkpoint/test_reward_export.py::test_a_pad_token_without_an_embedding_is_replaced",),
    ),
    Bug(
        "positions_up_to_padding_are_counted",
        "RoBERTa of 514 positions ends in an IndexError with a sample of 513 tokens",
        "models/limits.py",
        "    positions -= _num_up_to_padding(config)\n",
        "",
        ("tests/models/test_limits.py::test_positions_are_those_that_a_scaling_makes",),
    ),
    Bug(
        "positions_by_another_name_are_not_found",
        "a sample longer than Whisper's or MPT's positions ends in an error of torch",
        "models/limits.py",
        '_POSITIONS = ("max_position_embeddings", "max_target_positions", "max_seq_len")',
        '_POSITIONS = ("max_position_embeddings",)',
        ("tests/models/test_limits.py::test_positions_are_those_that_a_scaling_makes",),
    ),
]
