"""The format of conversations: messages and tools as people write them → as chat templates read them.

A conversation lies in `messages` (role/content), in ShareGPT's `conversations` (from/value), or in a named column.
"""

from __future__ import annotations

from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.columns import WEIGHT, column, json_value, kind, weight_in
from openrlhf.datasets.samples import BadRow, Conversation, Message, Row

COLUMNS = ("messages", "conversations", "conversation")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALL_ROLES = {"function_call", "tool_call"}
TRAINING_KEYS = ("train", WEIGHT)


def fits(row: Row, data: DataConfig) -> bool:
    return is_message_list(row.get(data.input_key or COLUMNS[0])) or any(name in row for name in COLUMNS)


def read(row: Row, data: DataConfig) -> Conversation:
    name = data.input_key if data.input_key in row else next((name for name in COLUMNS if name in row), None)
    return conversation(column(row, name or data.input_key or COLUMNS[0]), row)


def conversation(raw_messages: Any, row: Row, num_prompt_messages: int | None = None) -> Conversation:
    """A conversation from a list of messages (objects or JSON text); tools are read from the row.

    Raises BadRow if a message is none.
    """
    raw_messages = message_list(raw_messages)
    messages = [_message(raw, index) for index, raw in enumerate(raw_messages)]
    weights = [_turn_weight(raw, index) for index, raw in enumerate(raw_messages)]
    return Conversation(messages, _tools(row), weights, num_prompt_messages)


def message_list(raw: Any, where: str = "messages") -> list[Any]:
    """A list of messages given as such or as JSON text."""
    raw = json_value(raw, where)
    if not isinstance(raw, list):
        raise BadRow(f"{where}: {kind(raw)} where a list of messages belongs")
    if not raw:
        raise BadRow(f"{where}: an empty list")
    return raw


def is_message_list(value: Any) -> bool:
    """Whether a value looks like messages: a list of objects with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )


def _message(raw: Any, index: int) -> Message:
    where = f"message {index + 1}"
    if not isinstance(raw, dict):
        raise BadRow(f"{where}: {kind(raw)} where an object with role and content belongs")
    message = {key: value for key, value in raw.items() if value is not None and key not in TRAINING_KEYS}
    role = message.pop("from", None) or message.get("role")
    if not isinstance(role, str):
        raise BadRow(f"{where} has no role; it has {', '.join(map(repr, raw)) or 'nothing'}")
    message["role"] = ROLES.get(role.lower(), role)
    content = _content(message.pop("value", None) or message.get("content"), where)
    if role in CALL_ROLES:
        message["tool_calls"], content = json_value(content, f"{where}: the tool call"), ""
    message["content"] = content
    _normalize_calls(message, where)
    return message


def _content(content: Any, where: str) -> str:
    """Text; a list of text parts is joined, as a text model reads it."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise BadRow(f"{where}: its content is {kind(content)} where text belongs")


def _normalize_calls(message: Message, where: str) -> None:
    calls = json_value(message.pop("tool_calls", None), f"{where}: tool_calls")
    if not calls:
        return
    calls = calls if isinstance(calls, list) else [calls]
    message["tool_calls"] = [_call(call, f"{where}, tool call {number + 1}") for number, call in enumerate(calls)]


def _call(raw: Any, where: str) -> dict[str, Any]:
    """A call with its arguments as an object, in the shape templates expect."""
    raw = json_value(raw, where)
    function = json_value(raw.get("function", raw), where) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where} names no function")
    arguments = json_value(function.get("arguments") or {}, f"{where} ({function['name']}): its arguments text")
    if not isinstance(arguments, dict):
        raise BadRow(f"{where} ({function['name']}): its arguments are {kind(arguments)} where an object belongs")
    outer = {key: value for key, value in raw.items() if key != "function"} if "function" in raw else {}
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}


def _tools(row: Row) -> list[Any] | None:
    tools = json_value(row.get("tools"), "tools") if row.get("tools") else None
    if not tools:
        return None
    tools = tools if isinstance(tools, list) else [tools]
    tools = [json_value(tool, f"tool {number + 1}") for number, tool in enumerate(tools)]
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise BadRow(f"tool {number + 1}: {kind(tool)} where a schema (an object) belongs")
    return tools


def _turn_weight(raw: dict[str, Any], index: int) -> float:
    """The message's weight in the loss, 0 where it says `train: false`."""
    weight = weight_in(raw, f"message {index + 1}: its weight")
    return 0.0 if raw.get("train") is False else weight
