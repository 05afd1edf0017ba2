"""The functions that transformers takes from here."""


def pad_input(hidden_states, indices, batch, seqlen):
    raise NotImplementedError("packs have no padding")


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    raise NotImplementedError("packs have no padding")
