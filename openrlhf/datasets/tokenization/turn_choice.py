"""Which assistant messages of a conversation are trained."""

from __future__ import annotations

from openrlhf.datasets.samples import BadRow, Conversation, LeftOut


def chosen_turns(conversation: Conversation, choice: str) -> list[int]:
    """Indices of the assistant messages that `choice` (see `settings.TARGET_CHOICES`) trains.

    Raises LeftOut if there is none, BadRow if one of them says nothing.
    """
    messages = conversation.messages
    assistant = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not assistant:
        raise LeftOut("no assistant turn")
    chosen = _by_choice(conversation, assistant, choice)
    chosen = [index for index in chosen if conversation.trained[index]]
    for index in chosen:
        _check_not_empty(messages[index], index)
    if not chosen:
        raise LeftOut("no assistant turn to train")
    return chosen


def _by_choice(conversation: Conversation, assistant: list[int], choice: str) -> list[int]:
    if choice == "last_turn":
        return assistant[-1:]
    if choice == "completion":
        begin = _completion_begin(conversation)
        return [index for index in assistant if index >= begin]
    return assistant


def _completion_begin(conversation: Conversation) -> int:
    if conversation.num_prompt_messages is not None:
        return conversation.num_prompt_messages
    users = [index for index, message in enumerate(conversation.messages) if message["role"] == "user"]
    return users[-1] + 1 if users else 0


def _check_not_empty(message: dict, index: int) -> None:
    says = any(message.get(key) for key in ("reasoning_content", "thinking", "reasoning", "tool_calls"))
    if not says and not message["content"].strip():
        raise BadRow(f"turn {index + 1}: the assistant's answer is empty")
