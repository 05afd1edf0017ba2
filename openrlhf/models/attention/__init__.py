"""Attention back ends behind transformers' attention interface, and the choice among them."""
