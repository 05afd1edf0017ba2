"""What a run chooses where its settings leave the layout open."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from openrlhf.batching import StepLayout
from openrlhf.config import SFTConfig
from openrlhf.config.checks import LAYOUT_CHECKS
from openrlhf.config.schema import build, settings, values_of, with_values
from openrlhf.engine.state_memory import MemoryEstimate
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.run.layout_choice import open_layout, roomy_layout
from openrlhf.run.lengths import Lengths
from openrlhf.run.memory_estimate import Memory, RankMemory, RunMemory
from tests.helpers.tiny_models import tiny_model

MIB, GIB = 2**20, 2**30
PLENTY = Memory(on_cpu=True, device_bytes=64 * GIB)
SHORT = Lengths(longest=200, step=3_000)
NOTHING_SAID = {name: "auto" for name, setting in settings(SFTConfig).items() if setting.takes_auto}
DTYPE = torch.bfloat16


@functools.cache
def facts(kind="llama", **settings):
    model = tiny_model(kind, **settings)
    return ModelFacts(type(model), model.config, DTYPE)


def state_space():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    return ModelFacts(MambaForCausalLM, config, DTYPE)


def asked(**said):
    """Settings of which only these are said; `__` for `.`, and None for none."""
    said = {name.replace("__", "."): value for name, value in said.items()}
    return with_values(build(SFTConfig, {"ds.param_dtype": "bf16"} | NOTHING_SAID), said)


def opened(model=None, num_ranks=1, **said):
    return open_layout(asked(**said), model or facts(), num_ranks, on_cpu=True)


def chosen(lengths=SHORT, free=PLENTY, model=None, num_ranks=1, **said):
    return replace(opened(model, num_ranks, **said), memory=Figured(num_ranks)).choose(lengths, free)


class Figured(RunMemory):
    """Of a run whose figures are round: states by stage, and activations by token, in KiB."""

    STATES = {0: 40 * 1024, 1: 40 * 1024, 2: 30 * 1024, 3: 20 * 1024}

    def __init__(self, num_ranks=1, is_known=True):
        self._config, self.num_ranks, self.on_cpu, self._is_known = asked(), num_ranks, True, is_known

    def of(self, way, num_tokens):
        states = MemoryEstimate(1024 * self.STATES[way.zero_stage], 0, 0)
        return RankMemory(states, 1024 * num_tokens * (2 if way.recomputes else 10)) if self._is_known else None


def figured(kib, lengths=SHORT, **said):
    """The choice on a rank with room for so many KiB: a tenth stays free, and an estimate may be off by 15%."""
    return chosen(lengths, Memory(True, int(1024 * kib * 1.15 / 0.9) + 9), **said)


# --- where memory is ample


def test_ample_memory_is_used_for_speed():
    layout = chosen()
    ds, model, train = layout.config.ds, layout.config.model, layout.config.train
    assert (ds.zero_stage, ds.packing_samples, model.gradient_checkpointing_enable) == (1, True, False)
    assert train.max_tokens_per_micro_batch == 3_072  # a step, rounded


def test_nothing_is_left_to_the_run_afterwards():
    for config in (chosen().config, opened().config, chosen(free=None).config, chosen(model__aux_loss_coef=0.1).config):
        assert [name for name in NOTHING_SAID if values_of(config)[name] == "auto"] == []


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "said", "budget"),
    [
        (Lengths(200, 3_000), 1, {}, 3_072),
        (Lengths(200, 30_000), 1, {}, 8_192),
        (Lengths(200, 30_000), 1, dict(ds__param_dtype="fp32"), 4_096),
        (Lengths(10_000, 30_000), 1, dict(ds__param_dtype="fp32"), 10_000),
        (Lengths(200, 30_000), 8, {}, 4_096),  # an eighth, and room for a sample
        (Lengths(10_000, 30_000), 1, {}, 10_000),
        (Lengths(2_000, 2_000), 1, {}, 2_048),
        (Lengths(10_001, 30_000), 2, dict(ds__ring_attn_size=2), 8_192),
        (Lengths(30_001, 30_001), 2, dict(ds__ring_attn_size=2), 15_001),
        (Lengths(200, 30_000), 8, dict(ds__ring_attn_size=4, ds__packing_samples=True), 3_840),
    ],
)
def test_a_micro_batch_holds_a_ranks_step_a_sample_and_no_more_than_helps(lengths, num_ranks, said, budget):
    layout = chosen(lengths, num_ranks=num_ranks, **said)
    assert layout.config.train.max_tokens_per_micro_batch == budget


def test_ranks_that_share_a_matrix_get_the_same_samples():
    ds = asked(ds__tensor_parallel_size=2).ds
    assert Lengths(200, 8_000).of_rank(ds, num_ranks=2).step == 8_192


# --- where it is short


@pytest.mark.parametrize(
    ("kib", "way", "budget"),
    [
        (40 * 1024 + 30_720, (1, False), 3_072),
        (40 * 1024 + 30_719, (1, False), 2_048),
        (40 * 1024 + 20_479, (2, False), 2_048),
        (30 * 1024 + 20_479, (3, False), 2_048),
        (20 * 1024 + 20_479, (2, True), 3_072),
        (20 * 1024 + 4_095, (3, False), 256),  # no way has room for a modest micro-batch
        (20 * 1024, (3, True), 200),  # none has room for a sample; who looks at the data refuses it
    ],
)
def test_the_fastest_way_that_fits_is_taken(kib, way, budget):
    config = figured(kib).config
    assert (config.ds.zero_stage, config.model.gradient_checkpointing_enable) == way
    assert config.train.max_tokens_per_micro_batch == budget


def test_memory_cuts_a_budget_to_a_power_of_two_so_that_a_resume_finds_it_again():
    free = 40 * 1024 + 25_000
    budgets = {figured(free + more).config.train.max_tokens_per_micro_batch for more in (-2_000, 0, 2_000)}
    assert budgets == {2_048}


def test_what_is_offloaded_is_as_it_was_said():
    assert {way.offload for way in opened().ways} == {False}
    assert {way.offload for way in opened(ds__adam_offload=True).ways} == {True}


def test_the_rank_with_the_least_memory_decides():
    assert Memory.least([Memory(True, 5, 7), Memory(True, 6, None), Memory(True, 4, 9)]) == Memory(True, 4, 7)
    assert Memory.least([Memory(True, 5), None]) is None


def test_a_sample_is_refused_where_no_way_has_room_for_it(monkeypatch):
    monkeypatch.setattr(Memory, "free_here", lambda on_cpu: Memory(True, 25_000 * 1024))
    ways = opened().ways
    Figured().check(ways, 2_000, "row 1")  # only where it is recomputed
    with pytest.raises(UserError, match="no room for row 1"):
        Figured().check(ways, 6_000, "row 1")


@pytest.mark.parametrize("is_known", [True, False])
def test_where_nobody_can_tell_the_memory_the_choice_is_modest(is_known):
    layout = replace(opened(), memory=Figured(is_known=is_known))
    chosen = layout.choose(Lengths(100, 9_000), None if is_known else PLENTY)
    assert chosen.config.train.max_tokens_per_micro_batch == 2_048
    assert "the memory is not known" in chosen.in_words()


# --- what the model and other settings allow


def test_a_model_that_cannot_pack_is_padded_by_a_budget():
    layout = chosen(model=state_space())
    assert not layout.config.ds.packing_samples
    assert layout.config.train.max_tokens_per_micro_batch == 3_072
    assert "padded: this model cannot pack" in layout.in_words()


def test_a_model_that_cannot_pack_is_refused_where_that_is_said():
    with pytest.raises(UserError, match="cannot be trained on packed samples"):
        opened(state_space(), ds__packing_samples=True)


def test_a_ring_is_refused_where_the_model_cannot_pack():
    with pytest.raises(UserError, match="cannot be trained on packed samples"):
        opened(state_space(), num_ranks=2, ds__ring_attn_size=2)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_attention_that_is_slow_in_packs_is_given_none(name):
    assert not chosen(ds__attn_implementation=name).config.ds.packing_samples


def test_layers_that_cannot_be_recomputed_are_not():
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    model = ModelFacts(OpenAIGPTLMHeadModel, OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2), DTYPE)
    assert {way.recomputes for way in opened(model).ways} == {False}


@pytest.mark.parametrize(
    ("said", "num_ranks", "stages"),
    [
        ({}, 1, {1, 2, 3}),
        (dict(ds__param_dtype="fp32"), 1, {0, 1, 2, 3}),
        (dict(ds__param_dtype="fp32", ds__adam_offload=True), 1, {2, 3}),  # below, gradients stay on the device
        (dict(ds__adam_offload=True), 1, {2, 3}),
        (dict(ds__adam_offload=True, ds__zero_stage=1), 1, {1}),
        (dict(ds__param_dtype="fp32"), 2, {1, 2, 3}),
        (dict(ds__tensor_parallel_size=2), 2, {1, 2}),
        (dict(ds__zpg=2), 2, {3}),
        (dict(ds__param_dtype="fp32", ds__grad_accum_dtype="bf16"), 1, {1, 2, 3}),
        (dict(optim="muon"), 1, {1}),  # the numbers of its update depend on the stage
        (dict(optim="muon", ds__param_dtype="fp32"), 2, {0}),
        (dict(optim="muon", ds__grad_accum_dtype="bf16"), 2, {0}),
        (dict(optim="muon", ds__param_dtype="fp32", ds__grad_accum_dtype="bf16"), 2, {1}),
        (dict(ds__zero_stage=0), 1, {0}),
    ],
)
def test_the_stages_that_other_settings_allow_are_left(said, num_ranks, stages):
    assert {way.zero_stage for way in opened(num_ranks=num_ranks, **said).ways} == stages


def test_a_rank_alone_in_float32_holds_its_weights_once():
    layout = chosen(ds__param_dtype="fp32")
    assert layout.config.ds.zero_stage == 0
    assert "ZeRO 0: one rank splits nothing" in layout.in_words()


def test_a_ring_packs_and_sends_all_heads_at_once():
    ds = chosen(num_ranks=2, ds__ring_attn_size=2).config.ds
    assert (ds.packing_samples, ds.ring_head_stride) == (True, 2)
    assert chosen().config.ds.ring_head_stride == 1
    model = facts("gemma4", attention_k_eq_v=True, num_kv_shared_layers=0, num_global_key_value_heads=4)
    assert chosen(num_ranks=2, ds__ring_attn_size=2, model=model).config.ds.ring_head_stride == 4


@pytest.mark.parametrize("scope", ["micro_batch", "global"])
def test_a_balancing_loss_keeps_the_plain_layout_and_nothing_is_tried(scope):
    layout = chosen(model=facts("mixtral"), model__aux_loss_coef=0.01, model__aux_loss_scope=scope)
    plain = with_values(layout.config, {"model.aux_loss_coef": 0.0, "model.aux_loss_scope": "micro_batch"})
    assert plain == SFTConfig()
    assert layout.candidates == ()
    assert "padded, micro-batches of 8 samples" in layout.in_words()
    assert layout.in_words().endswith(": the balancing loss counts each micro-batch")


# --- what is said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ds.packing_samples", False),
        ("ds.zero_stage", 3),
        ("model.gradient_checkpointing_enable", True),
        ("train.max_tokens_per_micro_batch", 2_077),
        ("train.micro_batch_size", 3),
        ("ds.ring_head_stride", 1),
    ],
)
def test_what_is_said_stays(name, value):
    layout = chosen(**{name: value})
    assert values_of(layout.config)[name] == value
    assert layout.in_words().endswith(": as set") or name in ("ds.ring_head_stride", "train.micro_batch_size")


def test_a_budget_that_is_said_must_fit_and_is_not_tuned():
    layout = figured(40 * 1024 + 20_999, train__max_tokens_per_micro_batch=2_100)
    assert layout.config.ds.zero_stage == 2
    assert layout.candidates == ()


def test_a_file_that_runs_it_again_leaves_a_chosen_budget_to_the_run():
    """One that is given must have room for --data.max_len, and the data may be shorter."""
    again = chosen(Lengths(200, 700)).config_again
    assert again.train.max_tokens_per_micro_batch == "auto"
    assert [problem for check in LAYOUT_CHECKS for problem in check(again, 1)] == []
    assert open_layout(again, facts(), 1, on_cpu=True).config.ds.zero_stage == 1
    said = chosen(train__max_tokens_per_micro_batch=4_096)
    assert said.config_again == said.config


def test_samples_are_counted_where_the_budget_is_said_to_be_none():
    assert chosen(train__max_tokens_per_micro_batch=None).config.train.micro_batch_size == 8
    few = figured(20 * 1024 + 5_200, train__max_tokens_per_micro_batch=None)
    assert few.config.train.micro_batch_size == 2


# --- candidates of the tuner, and words


@pytest.mark.parametrize(
    ("lengths", "budgets"),
    [
        (Lengths(200, 3_000), [3_072, 1_536, 768]),
        (Lengths(1_000, 3_000), [3_072, 1_536]),
        (Lengths(200, 700), []),  # 768 tokens: half would be too few
        (Lengths(5_000, 9_000), []),
    ],
)
def test_smaller_micro_batches_are_worth_a_trial_where_they_hold_the_longest_sample(lengths, budgets):
    assert chosen(lengths).candidates == tuple(StepLayout(tokens) for tokens in budgets)


def test_candidates_recompute_as_the_chosen_one():
    assert {one.recomputes for one in figured(20 * 1024 + 20_479).candidates} == {True}


def test_the_start_table_gives_the_reasons():
    assert chosen(ds__zero_stage=2).in_words() == (
        "packed: nothing is padded; micro-batches of 3,072 tokens: a rank's whole step; "
        "activations kept: there is room; ZeRO 2: as set"
    )
    assert "ZeRO 2: gradients are offloaded too" in chosen(ds__adam_offload=True).in_words()


def test_states_are_not_said_to_fit_where_nothing_does():
    words = figured(20 * 1024).in_words()
    assert "ZeRO 3, activations recomputed: nothing surely fits, this takes least" in words


# --- lengths of the data


class Pairs:
    """Pairs of which the longer answer is not in the longer pair."""

    num_tokens = np.array([90, 60])

    def __len__(self):
        return 2

    def unit_lengths(self, row):
        return [(90, 10), (60, 60)][row]


def test_the_two_answers_of_a_pair_are_held_together():
    assert Lengths.of([Pairs()], 1, packed=True).longest == 120
    assert Lengths.of([Pairs()], 1, packed=False).longest == 180


def test_samples_that_are_evaluated_must_fit_too():
    train, evaluated = (Samples(np.full(4, size)) for size in (10, 30))
    assert Lengths.of([train, evaluated], 2, packed=True) == Lengths(longest=30, step=20)


class Samples:
    def __init__(self, num_tokens):
        self.num_tokens = num_tokens

    def __len__(self):
        return len(self.num_tokens)


def test_a_look_at_the_data_takes_what_a_run_with_memory_would():
    config = roomy_layout(asked(), Samples(np.full(400, 20)), 1)
    assert (config.ds.packing_samples, config.train.max_tokens_per_micro_batch) == (True, 2_560)
