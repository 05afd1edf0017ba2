"""Records as a run makes them."""

import pytest


def step_record(global_step, **changes):
    record = {
        "global_step": global_step,
        "epoch": 1.0,
        "loss": 2.0 / global_step,
        "lr": 1e-4,
        "grad_norm": 1.5,
        "num_tokens": 100,
        "num_target_tokens": 40,
        "consumed_samples": 8 * global_step,
        "tokens_per_second": 1234.5,
        "step_seconds": 0.081,
    }
    return record | changes


def eval_record(global_step):
    return {
        "global_step": global_step,
        "eval_loss": 1.25,
        "eval_perplexity": 3.49,
        "eval_num_target_tokens": 77,
    }


@pytest.fixture
def a_step():
    return step_record


@pytest.fixture
def an_eval():
    return eval_record
