"""Compiles a chat template so that its output tells which message each character came from.

The template's syntax tree gets a few extra outputs: where a loop over messages begins a round, where the loop ends,
and where `{% generation %}` blocks begin and end. They print short marks into the rendered text, and are taken out
again; so spans are read off the one final render, and no prefix of the conversation is ever rendered to find them.
A template that could see the marks, as it reads what it has printed, must be rendered without them too. A loop over
anything else than messages prints none: templates ask how long a text is that they made in one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.visitor import NodeTransformer

from openrlhf.datasets.tokenization.bounded_jinja import BoundedEnvironment

_NONCE = secrets.token_hex(4)
_MARK = re.compile(f"\ue0f0{_NONCE}([LEGH]|M[0-9]+)\ue0f1")
_TURN_FILTER, _LOOP_FILTER, _JOIN_FILTER = (f"{name}_{_NONCE}" for name in ("turn_mark", "loop_mark", "joined"))
PER_ROW_NAMES = {"messages", "tools", "documents"}


@dataclass(frozen=True)
class CharSpan:
    """Characters `start` to `end` (end excluded) of a rendered text."""

    start: int
    end: int


@dataclass
class MarkedRender:
    """A rendered text, and where its parts came from.

    Attributes:
        text: the text without marks.
        regions: message index → its stretches of the text (more than one if the template returns to a message).
        loops_end: where the last loop over messages ended; what follows is printed once, after them.
        generations: (message index or None, span) of each `{% generation %}` block.
    """

    text: str
    regions: dict[int, list[CharSpan]] = field(default_factory=dict)
    loops_end: int = 0
    generations: list[tuple[int | None, CharSpan]] = field(default_factory=list)


class MarkedTemplate:
    """A chat template that renders with marks, and without.

    Attributes:
        can_see_marks: `render` may give another text than `text`.
    """

    def __init__(self, source: str):
        """Raises jinja2.TemplateSyntaxError if the source is no Jinja."""
        self._source = source
        self._index_of: dict[int, int] = {}  # the messages that are being rendered, by their `id`
        self._open_loops: list[bool] = []  # whether they have come to a message
        self._environment = environment = _environment(_GenerationMarks, self._turn_mark, self._loop_mark)
        self._plain_environment = _environment(_GenerationBlocks, lambda item: "")
        tree = environment.parse(source)
        self.has_generation_marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))
        self.can_see_marks = self.has_generation_marks or _reads_what_it_printed(tree)
        self.constant_prompt = _prompt_is_constant(tree)
        self._template = _compiled(environment, _LoopMarks().visit(tree))

    @cached_property
    def _plain(self) -> Template:
        environment = self._plain_environment
        return _compiled(environment, _Bounds().visit(environment.parse(self._source)))

    def text(self, messages: list[dict], **names: Any) -> str:
        """The text of the messages, rendered without marks."""
        self._plain_environment.begin(_num_characters(messages))
        return self._plain.render(messages=messages, **names)

    def render(self, messages: list[dict], **names: Any) -> MarkedRender:
        """Renders the messages; `names` are the other names the template sees (tools, eos_token …)."""
        self._index_of = {id(message): index for index, message in enumerate(messages)}
        self._open_loops = []
        self._environment.begin(_num_characters(messages))
        return _read_marks(self._template.render(messages=messages, **names))

    def _turn_mark(self, item: Any) -> str:
        index = self._index_of.get(id(item))
        if index is None:
            return ""
        begin = "" if self._open_loops[-1] else _mark("L")
        self._open_loops[-1] = True
        return begin + _mark(f"M{index}")

    def _loop_mark(self, is_begin: bool) -> str:
        """Nothing where a loop begins: its mark is printed with the first message that it comes to."""
        if is_begin:
            self._open_loops.append(False)
            return ""
        return _mark("E") if self._open_loops.pop() else ""


def _compiled(environment: BoundedEnvironment, tree: nodes.Template) -> Template:
    template = environment.from_string(tree)
    template.globals = dict(template.globals)  # Jinja copies them for each render, and its own kind of dict is slow
    return template


def _num_characters(messages: list[dict]) -> int:
    return sum(len(message["content"] or "") for message in messages)


def _mark(kind: str) -> str:
    return f"\ue0f0{_NONCE}{kind}\ue0f1"


def _read_marks(marked: str) -> MarkedRender:
    """Takes the marks out of a rendered text and keeps what they say."""
    render = MarkedRender("")
    pieces, length = [], 0
    owners: list[int | None] = []  # one entry per open loop: the message of its current round
    open_generation = 0
    # The split gives text and kinds of marks in turn: L loop begins, E loop ends, M3 round of message 3 begins,
    # G and H a generation block begins and ends. `length` counts the characters of the text without marks.
    for index, piece in enumerate(_MARK.split(marked)):
        if index % 2 == 0:
            _note_region(render.regions, _owner(owners), CharSpan(length, length + len(piece)), piece)
            pieces.append(piece)
            length += len(piece)
        elif piece == "L":
            owners.append(None)
        elif piece == "E":
            owners.pop()
            render.loops_end = length
        elif piece == "G":
            open_generation = length
        elif piece == "H":
            render.generations.append((_owner(owners), CharSpan(open_generation, length)))
        elif owners:
            owners[-1] = int(piece[1:])
    render.text = "".join(pieces)
    return render


def _owner(owners: list[int | None]) -> int | None:
    """The message that is being printed; None in a loop over messages within another message's round."""
    distinct = {owner for owner in owners if owner is not None}
    return distinct.pop() if len(distinct) == 1 else None


def _note_region(regions: dict[int, list[CharSpan]], owner: int | None, span: CharSpan, piece: str) -> None:
    """Adds a stretch of text to its message's; one that goes on where the last ended is joined to it."""
    if owner is None or not piece:
        return
    spans = regions.setdefault(owner, [])
    if spans and spans[-1].end == span.start:
        spans[-1] = CharSpan(spans[-1].start, span.end)
    else:
        spans.append(span)


class _Bounds(NodeTransformer):
    """Puts a filter into every round of a loop, and in place of `~`: filters are within bounds."""

    def visit_For(self, node: nodes.For) -> Any:
        self.generic_visit(node)
        item = nodes.Name(node.target.name, "load") if isinstance(node.target, nodes.Name) else nodes.Const(None)
        node.body.insert(0, nodes.Output([_filtered(_TURN_FILTER, item)]))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(_JOIN_FILTER, *node.nodes)


class _LoopMarks(_Bounds):
    """Puts marks around every loop besides; the filter names the message of the round, if it is one."""

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:
        begin, end = (nodes.Output([_filtered(_LOOP_FILTER, nodes.Const(is_begin))]) for is_begin in (True, False))
        return [begin, super().visit_For(node), end]


def _filtered(name: str, first: Any, *others: Any) -> nodes.Filter:
    return nodes.Filter(first, name, [*others], [], None, None)


class _GenerationMarks(Extension):
    """The `{% generation %}` block of transformers, as two marks."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [_mark_output("G"), *body, _mark_output("H")]


class _GenerationBlocks(Extension):
    """The block as transformers has it: what is set in it is gone behind it."""

    tags = _GenerationMarks.tags

    def parse(self, parser: Any) -> nodes.Node:
        number = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_printed"), [], [], body).set_lineno(number)

    def _printed(self, caller: Any) -> str:
        return caller()


def _mark_output(kind: str) -> nodes.Output:
    return nodes.Output([nodes.TemplateData(_mark(kind))])


def _environment(
    generation: type[Extension], turn_mark: Callable[[Any], str], loop_mark: Callable[[bool], str] | None = None
) -> BoundedEnvironment:
    """The filters and functions that transformers documents for chat templates."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.filters[_JOIN_FILTER] = environment.joined

    @pass_context  # and so Jinja cannot work it out when it compiles
    def begin_round(context: Any, item: Any) -> str:
        environment.spend()
        return turn_mark(item)

    environment.filters[_TURN_FILTER] = begin_round
    if loop_mark is not None:
        environment.filters[_LOOP_FILTER] = pass_context(lambda context, is_begin: loop_mark(is_begin))
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _reads_what_it_printed(tree: nodes.Template) -> bool:
    """Whether a part of the output is a value of the template: marks in it could change what follows."""
    holders = (nodes.AssignBlock, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Block)
    is_held = next(tree.find_all((*holders, nodes.ScopedEvalContextModifier)), None) is not None
    return is_held or any(loop.recursive for loop in tree.find_all(nodes.For))


def _prompt_is_constant(tree: nodes.Template) -> bool:
    """Whether the generation prompt is the same text for every conversation.

    True if each mention of `add_generation_prompt` is the whole test of an `if` whose branches read nothing that
    differs between rows. A False costs time, never exactness.
    """
    # Inside a loop, a macro or another `if`, the test decides once for each row or not at all.
    mentions = [name for name in tree.find_all(nodes.Name) if name.name == "add_generation_prompt"]
    guards = [node for node in tree.find_all(nodes.If) if _tests_prompt_alone(node)]
    if not mentions or len(guards) != len(mentions) or _inside_loop_or_macro(tree, guards):
        return False
    row_free = find_undeclared_variables(tree) - PER_ROW_NAMES
    return all(name.name in row_free for guard in guards for name in guard.find_all(nodes.Name) if name.ctx == "load")


def _tests_prompt_alone(node: nodes.If) -> bool:
    return isinstance(node.test, nodes.Name) and node.test.name == "add_generation_prompt"


def _inside_loop_or_macro(tree: nodes.Template, guards: list[nodes.If]) -> bool:
    holders = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock)
    nested = {id(inner) for holder in tree.find_all(holders) for inner in holder.find_all(nodes.If)}
    nested |= {id(inner) for outer in tree.find_all(nodes.If) for inner in outer.find_all(nodes.If)}
    return any(id(guard) in nested for guard in guards)
