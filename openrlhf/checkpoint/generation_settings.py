"""The settings that an exported model needs to stop where its tokenizer and its chat template say."""

import copy
from typing import Any

_QUESTION, _ANSWER = "question", "answer"


def generation_config_for(model: Any, tokenizer: Any) -> Any:
    """A copy of the model's generation settings whose end, pad and start tokens are the tokenizer's.

    `eos_token_id` is one id, or a list where the chat template ends a turn with another token than the
    tokenizer's end token. What the model had there before is not trusted: it may belong to another tokenizer
    or template.
    """
    config = copy.deepcopy(model.generation_config)
    if tokenizer is None:
        return config
    end_ids = end_token_ids(tokenizer)
    config.eos_token_id = end_ids[0] if len(end_ids) == 1 else end_ids or None
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    return config


def end_token_ids(tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's end token and the chat template's end of a turn, each once."""
    ids = (tokenizer.eos_token_id, end_of_turn_token_id(tokenizer))
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def end_of_turn_token_id(tokenizer: Any) -> int | None:
    """The special token that the chat template puts first after an assistant's turn, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise anything; one that cannot render two plain turns tells nothing
        return None
    after_answer = text.rpartition(_ANSWER)[2]
    ids = tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    special_ids = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id_ for id_ in ids if id_ in special_ids or id_ in tokenizer.all_special_ids), None)
