"""Floating-point operations of a training step, the same count for every contestant.

`model_flops`: the operations of exact training, forward and backward, two a multiply-add:

- 6 × weights of the layers' matrices (attention and MLP), for every token (padding is no token); behind the attention
  of the last layer, for target tokens alone: nothing reads the others;
- 6 × weights of the head's matrix (vocabulary × hidden), for target tokens alone: only they have a loss;
- 6 × layers × heads × head size × L² for each sample of L tokens: queries by keys and weights by values, 2 × 2
  operations a pair, half the pairs (causal), three times (backward counts twice).

Counted, though nobody needs it and ours leaves it out (`models/last_layer.py`): what the last layer computes behind its
attention of tokens that are no targets, 3% of the products in cases (a) and (d).

Not counted, for anybody: the embedding's look-up, norms, softmax, the optimizer, recomputation under checkpointing.

`plain_flops`: 6 × all weights (the head at every token) × tokens, without attention: the usual rule of thumb.
"""

from __future__ import annotations

from benchmarks.materials import ModelShape


def model_flops(shape: ModelShape, num_tokens: float, num_target_tokens: float, sum_of_squares: float) -> float:
    width = shape.num_attention_heads * shape.head_dim
    products = sum(product_flops(shape, num_tokens, num_target_tokens).values())
    return products + 6 * shape.num_hidden_layers * width * sum_of_squares


def product_flops(shape: ModelShape, num_tokens: float, num_target_tokens: float) -> dict[str, float]:
    """Of that, the products with the weights of the layers, and those with the weights of the head."""
    unread = shape.parameters_behind_attention * (num_tokens - num_target_tokens)
    return {
        "layers": 6 * (shape.layer_matrix_parameters * num_tokens - unread),
        "head": 6 * shape.head_parameters * num_target_tokens,
    }


def plain_flops(shape: ModelShape, num_tokens: float) -> float:
    return 6 * (shape.layer_matrix_parameters + shape.head_parameters) * num_tokens
