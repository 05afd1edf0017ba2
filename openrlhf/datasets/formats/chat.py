"""The format of conversations: messages and tools as people write them → as chat templates read them.

A conversation lies in `messages` (role/content), in ShareGPT's `conversations` (from/value), or in a named column.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.formats.columns import DEFAULT_INPUT_KEY, WEIGHT, column, json_value, kind, names, weight_in
from openrlhf.datasets.samples import (
    ARGUMENTS_ARE_READ,
    FUNCTION_CALL_IS_READ,
    SYSTEM_IS_READ,
    BadRow,
    Conversation,
    Message,
    Row,
)

COLUMNS = ("messages", "conversations", "conversation")
ROLES = ("system", "developer", "user", "assistant", "tool")
SYNONYMS = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool_response", "function_response", "observation", "function", "ipython"), "tool"),
}
CALL_ROLES = {"function_call", "tool_call"}
TRAINING_KEYS = ("train", WEIGHT)
SYSTEM, TOOLS = "system", "tools"
IS_NOT_READ = "the column {!r} is not read: texts take it with --data.apply_chat_template alone"
TEMPLATE_KWARGS = "chat_template_kwargs"
KWARGS_ARE_NOT_READ = (
    f"the column {TEMPLATE_KWARGS!r} is not read: a template is given messages and tools alone; say it in the "
    "template itself, by --data.tokenizer_chat_template"
)
ARGUMENTS, FUNCTION_CALL = "arguments", "function_call"
MEDIA = ("images", "image", "audio", "audios", "videos")
MEDIA_IS_NOT_READ = "the column {!r} is not read: text alone is trained"
_TEXT_TYPES = (None, "text", "input_text", "output_text")  # of a part of a content
_KEYS_OF_TEXT = {"type", "text", "cache_control", "annotations"}  # the last two are nothing that a model reads
_ARGUMENT_KEYS = (ARGUMENTS, "parameters", "input")  # of Llama's calls, and of Anthropic's


def fits(row: Row, data: DataConfig) -> bool:
    return is_message_list(row.get(data.input_key or COLUMNS[0])) or any(name in row for name in COLUMNS)


def read(row: Row, data: DataConfig) -> Conversation:
    usual = next((name for name in COLUMNS if name in row), None)
    is_asked_for = data.input_key in row and (data.input_key != DEFAULT_INPUT_KEY or usual is None)
    key = (data.input_key if is_asked_for else usual) or data.input_key or COLUMNS[0]
    return with_system(conversation(column(row, key), row), row, read=(key,))


def conversation(raw_messages: Any, row: Row, num_prompt_messages: int | None = None) -> Conversation:
    """A conversation from a list of messages (objects or JSON text); tools are read from the row.

    Raises BadRow if a message is none.
    """
    raw_messages = message_list(raw_messages)
    remarks: dict[str, None] = {}
    messages = [_message(raw, index, remarks) for index, raw in enumerate(raw_messages)]
    weights = [_turn_weight(raw, index) for index, raw in enumerate(raw_messages)]
    kwargs = row.get(TEMPLATE_KWARGS)
    if kwargs and not (isinstance(kwargs, dict) and all(value is None for value in kwargs.values())):
        remarks[KWARGS_ARE_NOT_READ] = None
    remarks |= {MEDIA_IS_NOT_READ.format(name): None for name in MEDIA if not _is_nothing(row.get(name))}
    return Conversation(messages, _tools(row), weights, num_prompt_messages, tuple(remarks))


def with_system(content: Conversation, row: Row, read: Container[Any] = ()) -> Conversation:
    """The conversation behind the system message in the row's column `system`, if a text stands there.

    Args:
        read: columns whose content the conversation is.

    Raises BadRow where a system message of its own says something else.
    """
    text = None if SYSTEM in read else row.get(SYSTEM)
    if not isinstance(text, str) or not text.strip():
        return content
    own = [message["content"].strip() for message in content.messages if message["role"] in ("system", "developer")]
    if text.strip() in own:
        return content
    if own:
        raise BadRow(
            f"column {SYSTEM!r} says {text.strip()[:40]!r}, a system message in the row says {own[0][:40]!r}: "
            "leave one of them out"
        )
    in_prompt = None if content.num_prompt_messages is None else content.num_prompt_messages + 1
    return replace(
        content,
        messages=[{"role": "system", "content": text}, *content.messages],
        weights=[1.0, *content.weights],
        num_prompt_messages=in_prompt,
        remarks=(*content.remarks, SYSTEM_IS_READ),
    )


def not_read(row: Row, read: Container[Any] = ()) -> tuple[str, ...]:
    """Remarks on columns of conversations that a plain text has no place for. Args: read: as of `with_system`."""
    given = {name: row.get(name) for name in (SYSTEM, TOOLS) if name not in read}
    values = {name: "" if _is_nothing(value) else str(value).strip() for name, value in given.items()}
    filled = (name for name, value in values.items() if value not in ("", "[]", "null"))
    return tuple(IS_NOT_READ.format(name) for name in filled)


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
        raise BadRow(f"{where} has no content; it has {names(_filled(raw))}")
    if given.strip().lower() in CALL_ROLES:
        message["tool_calls"], content = json_value(content, f"{where}: the tool call"), ""
    if message["role"] == "assistant" and message.get(FUNCTION_CALL):
        _take_function_call(message, where, remarks)
    message["content"] = content_text(content, where)
    calls = _listed(message.pop("tool_calls", None), f"{where}: tool_calls")
    if calls:
        places = [f"{where}, tool call {number}" for number in range(1, len(calls) + 1)]
        message["tool_calls"] = [_call(call, place, remarks) for call, place in zip(calls, places, strict=True)]
    return message


def _take_function_call(message: Message, where: str, remarks: dict[str, None]) -> None:
    """OpenAI's key of a single call, before there were `tool_calls`, which templates read."""
    call = message.pop(FUNCTION_CALL)
    if message.get("tool_calls"):
        raise BadRow(f"{where} has both {FUNCTION_CALL!r} and a tool call of another kind: leave one of them out")
    message["tool_calls"] = call
    remarks[FUNCTION_CALL_IS_READ] = None


def _one_of(message: Message, key: str, synonym: str, where: str) -> Any:
    """Takes the value that stands under a key or its synonym; BadRow where two stand there that differ."""
    value, other = message.pop(key, None), message.pop(synonym, None)
    if None not in (value, other) and value != other:
        raise BadRow(f"{where} has both {key!r} and {synonym!r}, and they differ: leave one of them out")
    return other if value is None else value


def _filled(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if not _is_nothing(value)}


def _is_nothing(value: Any) -> bool:
    """None or empty; an array of numpy or torch, which a row may hold, compares item by item and is asked its shape."""
    is_empty = isinstance(value, str | list | dict) and not value
    return value is None or is_empty or 0 in getattr(value, "shape", ())


def _role(given: Any, where: str, raw: dict[str, Any], remarks: dict[str, None]) -> str:
    """One of `ROLES`. A synonym is remarked on, another word refused: a template may print it, or drop its message."""
    if given is None or given == "":
        raise BadRow(f"{where} has no role; it has {names(_filled(raw))}")
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


def content_text(content: Any, where: str) -> str:
    """Text; a list of text parts is joined, as a text model reads it. Raises BadRow of what is neither."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow(f"{where}: its content is {kind(content)} where text belongs")
    return "".join(_text_of(part, f"{where}: part {number} of its content") for number, part in enumerate(content, 1))


def _text_of(part: Any, where: str) -> str:
    """The text of a part that is text and nothing else."""
    if not isinstance(part, dict):
        raise BadRow(f"{where} is {kind(part)} where an object with a text belongs")
    is_text = part.get("type") in _TEXT_TYPES and isinstance(part.get("text"), str)
    if not is_text or _filled(part).keys() - _KEYS_OF_TEXT:
        of_type = f", of type {str(part['type'])[:30]!r}," if part.get("type") else ""
        raise BadRow(f"{where}{of_type} has {names(part)}, which is not text alone: remove the part or the row")
    return part["text"]


def _call(raw: Any, where: str, remarks: dict[str, None]) -> dict[str, Any]:
    """A call with its arguments as an object, in the shape templates expect."""
    raw = json_value(raw, where)
    function = json_value(raw.get("function", raw), where) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where} names no function")
    key = next((key for key in _ARGUMENT_KEYS if function.get(key) is not None), ARGUMENTS)
    arguments = json_value(function.get(key) or {}, f"{where} ({function['name']}): its {key} text")
    if not isinstance(arguments, dict):
        raise BadRow(f"{where} ({function['name']}): its {key} are {kind(arguments)} where an object belongs")
    if key != ARGUMENTS:
        remarks[ARGUMENTS_ARE_READ] = None
        function = {name: value for name, value in function.items() if name != key}
    outer = {key: value for key, value in raw.items() if key != "function"} if "function" in raw else {}
    return {"type": "function", **outer, "function": {**function, ARGUMENTS: arguments}}


def _tools(row: Row) -> list[Any] | None:
    tools = _listed(row.get(TOOLS) or None, TOOLS)
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
