"""What a conversation holds and its template does not print: a model would be taught to say nothing in its place.

Tool calls, what is said beside them, results of tools, reasoning and tools are looked for by tags: the conversation is
rendered once more with a tag in each of them. Their own words would not do, for the text may hold them elsewhere.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

from openrlhf.datasets.samples import BadRow, Conversation, Message
from openrlhf.datasets.tokenization.chat_template import REASONING, ChatRenderer
from openrlhf.datasets.tokenization.marked_template import MarkedRender

_NONCE = secrets.token_hex(4)
_TAG = re.compile(f"{_NONCE}n([0-9]+)x")
_THOUGHTS_END = "</think>"  # of reasoning that stands in the content
_UNPRINTED = "the chat template does not print the {} of an answer"
_UNPRINTED_MESSAGE = "the chat template does not print a message of the role {!r}"
_REMEDY = "give a template that knows tools by --data.tokenizer_chat_template"


def check_printed(
    renderer: ChatRenderer, conversation: Conversation, render: MarkedRender, turns: list[int]
) -> Iterator[str]:
    """Yields remarks on what is not printed. Raises BadRow for a tool call, and where nothing is left of an answer.

    Args: turns: the messages that are trained; of the others, templates leave out the reasoning on purpose.
    """
    messages, tools = conversation.messages, conversation.tools
    yield from _unprinted_contents(messages, render.text)
    thinking = [turn for turn in turns if _THOUGHTS_END in messages[turn]["content"]]
    if any(_has_lost_thoughts(messages[turn], turn, render) for turn in thinking):
        yield _UNPRINTED.format(f"part before {_THOUGHTS_END}")
    judged = [turn for turn, message in enumerate(messages) if turn in turns or "tool_calls" in message]
    doubtful = [turn for turn in judged if not _is_plainly_printed(messages[turn], messages, render.text)]
    has_results = any(message["role"] == "tool" for message in messages)
    if not tools and not has_results and all(_has_no_room(messages[turn], turn, render) for turn in doubtful):
        yield from (_UNPRINTED.format(name) for turn in doubtful for name in REASONING if messages[turn].get(name))
        return
    tags: list[tuple[str, int, str]] = []  # kind, message, name
    tagged = [_tagged_message(message, turn, tags) for turn, message in enumerate(messages)]
    tagged_tools = [_tagged_tool(tool, tags) for tool in tools or ()] or None
    text = renderer.text_of(tagged, tagged_tools)
    if not text:  # the template refuses the tags
        return
    printed = {int(number) for number in _TAG.findall(text)}
    for number, (kind, turn, name) in enumerate(tags):
        if number not in printed:
            yield from _judged(kind, turn, name, messages, turns)


def _has_lost_thoughts(message: Message, turn: int, render: MarkedRender) -> bool:
    """Whether an answer's content has reasoning before its `</think>` that does not stand before what follows it.

    White space may differ, and the reasoning may be printed in other marks.
    """
    thoughts, _, rest = map(_bare, message["content"].rpartition(_THOUGHTS_END))
    thoughts = thoughts.removeprefix("<think>")
    if not thoughts:
        return False
    spans = render.regions.get(turn, [])  # none: the last message is printed behind the loop
    printed = _bare("".join(render.text[span.start : span.end] for span in spans) or render.text)
    before = printed[: printed.rfind(rest)] if rest and rest in printed else printed
    return thoughts not in before


def _bare(text: str) -> str:
    return "".join(text.split())


def _is_plainly_printed(message: Message, messages: list[Message], text: str) -> bool:
    """Whether no tag is needed: it has no calls, and reasoning, if any, that stands in the text and in no content."""
    if "tool_calls" in message:
        return False
    reasoning = [message[name] for name in REASONING if message.get(name)]
    return all(
        isinstance(one, str) and one in text and not any(one in other["content"] for other in messages)
        for one in reasoning
    )


def _has_no_room(message: Message, turn: int, render: MarkedRender) -> bool:
    """Whether what is printed of an answer, its content left out, is shorter than its reasoning."""
    printed = "".join(render.text[span.start : span.end] for span in render.regions.get(turn, []))
    content, reasoning = message["content"].strip(), [message[name] for name in REASONING if message.get(name)]
    if "tool_calls" in message or not content or content not in printed:
        return False
    return all(isinstance(one, str) and len(printed) - len(content) < len(one.strip()) for one in reasoning)


def _judged(kind: str, turn: int, name: str, messages: list[Message], turns: list[int]) -> Iterator[str]:
    """What follows from a tag that is not printed."""
    if kind == "call":
        raise BadRow(f"turn {turn + 1}: the chat template does not print the tool call {name!r}; {_REMEDY}")
    if kind == "argument":
        raise BadRow(f"turn {turn + 1}: the chat template does not print an argument of {name!r}; {_REMEDY}")
    if kind == "tools":
        yield "the chat template does not print the row's tools"
    elif kind == "result":
        yield _UNPRINTED_MESSAGE.format(name)
    elif kind == "beside" and turn in turns:
        yield _UNPRINTED.format("content beside the tool calls")
    elif kind == "reasoning" and turn in turns:
        if not messages[turn]["content"].strip() and not messages[turn].get("tool_calls"):
            raise BadRow(f"turn {turn + 1}: the answer is reasoning alone, which the chat template does not print")
        yield _UNPRINTED.format(name)


def _unprinted_contents(messages: list[Message], text: str) -> Iterator[str]:
    """Of messages that are not the assistant's; a tool's may be printed as JSON, and is looked for by a tag."""
    bare = None
    for message in messages:
        role, content = message["role"], message["content"].strip()
        if role in ("assistant", "tool") or content in text:
            continue
        bare = bare or _bare(text)
        if _bare(content) not in bare:
            yield _UNPRINTED_MESSAGE.format(role)


def _tagged_message(message: Message, turn: int, tags: list[tuple[str, int, str]]) -> Message:
    changed = dict(message)
    for name in REASONING:
        if message.get(name):
            changed[name] = f"{message[name]}{_new_tag(tags, ('reasoning', turn, name))}"
    if "tool_calls" in message:
        changed["tool_calls"] = [_tagged_call(call, turn, tags) for call in message["tool_calls"]]
    kind = "result" if message["role"] == "tool" else "beside" if "tool_calls" in message else None
    if kind and message["content"].rpartition(_THOUGHTS_END)[2].strip():
        changed["content"] = f"{message['content']}{_new_tag(tags, (kind, turn, message['role']))}"
    return changed


def _tagged_call(call: dict[str, Any], turn: int, tags: list[tuple[str, int, str]]) -> dict[str, Any]:
    name = call["function"]["name"]
    tagged_name = name + _new_tag(tags, ("call", turn, name))

    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tagged(part) for key, part in value.items()}
        if isinstance(value, list):
            return [tagged(part) for part in value]
        tag = _new_tag(tags, ("argument", turn, name))
        return value + tag if isinstance(value, str) else tag

    arguments = tagged(call["function"]["arguments"])
    return {**call, "function": {**call["function"], "name": tagged_name, "arguments": arguments}}


def _tagged_tool(tool: dict[str, Any], tags: list[tuple[str, int, str]]) -> dict[str, Any]:
    inner = tool.get("function", tool)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return tool
    named = {**inner, "name": inner["name"] + _new_tag(tags, ("tools", -1, inner["name"]))}
    return {**tool, "function": named} if "function" in tool else named


def _new_tag(tags: list[tuple[str, int, str]], meaning: tuple[str, int, str]) -> str:
    tags.append(meaning)
    return f"{_NONCE}n{len(tags) - 1}x"
