"""Tiny byte-level BPE tokenizers, trained in milliseconds: no model hub is needed to test the way of a sample."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

EOS, PAD, BOS = "<|endoftext|>", "<|pad|>", "<|bos|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "Can I get a coffee with oat milk, please? Sure. Your order will be ready at the bar in five minutes.",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May. How many clips did she sell altogether? #### 72",
    '{"type": "function", "function": {"name": "get_menu_items", "arguments": {"query": "latte"}}}',
    "system user assistant tool Question: Answer: The sum of three and four is seven.",
    "Was kostet ein großer Kaffee? Ça coûte trois euros. これはペンです。",
)


def tiny_tokenizer(
    chat_template: str | None = None,
    vocab_size: int = 512,
    pad_is_eos: bool = False,
    with_bos: bool = False,
    extra_special_tokens: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A fast tokenizer that encodes any text without loss.

    Args:
        chat_template: Jinja text kept as the tokenizer's own template.
        vocab_size: merges stop at this many tokens, special tokens included.
        pad_is_eos: pad with the end token instead of `<|pad|>`.
        with_bos: has `<|bos|>` and puts it in front of every encoded text, as Llama's tokenizers do.
        extra_special_tokens: further special tokens, such as a template family's turn marks.
    """
    specials = (EOS, PAD, IM_START, IM_END) + ((BOS,) if with_bos else ()) + extra_special_tokens
    backend = Tokenizer.from_str(_trained_json(vocab_size, specials))
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=EOS if pad_is_eos else PAD,
        bos_token=BOS if with_bos else None,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _trained_json(vocab_size: int, specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer.to_str()
