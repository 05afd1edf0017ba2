"""The format of conversations: messages and tools as people write them → as chat templates read them.

A conversation lies in `messages` (role/content), in ShareGPT's `conversations` (from/value), or in a named column.
"""

from __future__ import annotations

from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.columns import WEIGHT, column, json_value, kind, names, weight_in
from openrlhf.datasets.samples import BadRow, Conversation, Message, Row

COLUMNS = ("messages", "conversations", "conversation")
ROLES = ("system", "developer", "user", "assistant", "tool")
SYNONYMS = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool_response", "function_response", "observation", "function", "ipython"), "tool"),
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
    remarks: dict[str, None] = {}
    messages = [_message(raw, index, remarks) for index, raw in enumerate(raw_messages)]
    weights = [_turn_weight(raw, index) for index, raw in enumerate(raw_messages)]
    return Conversation(messages, _tools(row), weights, num_prompt_messages, tuple(remarks))


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
        and value != []
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )


def _message(raw: Any, index: int, remarks: dict[str, None]) -> Message:
    where = f"message {index + 1}"
    if not isinstance(raw, dict):
        raise BadRow(f"{where}: {kind(raw)} where an object with role and content belongs")
    message = {key: value for key, value in raw.items() if value is not None and key not in TRAINING_KEYS}
    given = _one_of(message, "role", "from", where)
    message["role"] = _role(given, where, raw, remarks)
    content = _one_of(message, "content", "value", where)
    if content is None and message["role"] != "assistant":
        raise BadRow(f"{where} has no content; it has {names(raw)}")
    if given.strip().lower() in CALL_ROLES:
        message["tool_calls"], content = json_value(content, f"{where}: the tool call"), ""
    message["content"] = _content(content, where)
    calls = _listed(message.pop("tool_calls", None), f"{where}: tool_calls")
    if calls:
        message["tool_calls"] = [_call(call, f"{where}, tool call {number}") for number, call in enumerate(calls, 1)]
    return message


def _one_of(message: Message, key: str, synonym: str, where: str) -> Any:
    """Takes the value that stands under a key or its synonym; BadRow where two stand there that differ."""
    value, other = message.pop(key, None), message.pop(synonym, None)
    if None not in (value, other) and value != other:
        raise BadRow(f"{where} has both {key!r} and {synonym!r}, and they differ: leave one of them out")
    return other if value is None else value


def _role(given: Any, where: str, raw: dict[str, Any], remarks: dict[str, None]) -> str:
    """One of `ROLES`. A synonym is remarked on, another word refused: a template may print it, or drop its message."""
    if given is None or given == "":
        raise BadRow(f"{where} has no role; it has {names(raw)}")
    role = given.strip().lower() if isinstance(given, str) else ""
    role = SYNONYMS.get(role, role)
    if role not in ROLES:
        raise BadRow(
            f"{where}: its role is {str(given)[:60]!r}; roles are {', '.join(ROLES)} "
            f"(and {', '.join(SYNONYMS)}, which are read as one of them)"
        )
    if role != given:
        remarks[f"the role {given!r} is read as {role!r}"] = None
    return role


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
    tools = _listed(row.get("tools") or None, "tools")
    tools = [json_value(tool, f"tool {number}") for number, tool in enumerate(tools, 1)]
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict):
            raise BadRow(f"tool {number}: {kind(tool)} where a schema (an object) belongs")
    return tools or None


def _listed(value: Any, where: str) -> list[Any]:
    """A list, or its only item; given as such or as JSON text."""
    value = json_value(value, where)
    if not value:
        return []
    return value if isinstance(value, list) else [value]


def _turn_weight(raw: dict[str, Any], index: int) -> float:
    """The message's weight in the loss, 0 where it says `train: false`."""
    weight, train = weight_in(raw, f"message {index + 1}: its weight"), raw.get("train")
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"message {index + 1}: its train holds {kind(train)}: write true or false, or leave it out")
    return 0.0 if train is False else weight
