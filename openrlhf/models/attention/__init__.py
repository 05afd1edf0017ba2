"""Attention back ends behind transformers' attention interface, and the choice among them."""

from openrlhf.models.attention.choice import check_causal, check_packable, choose_attention, register_attentions

__all__ = ["check_causal", "check_packable", "choose_attention"]

register_attentions()
