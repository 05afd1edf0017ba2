"""The chat template of a run, the form in which tool-call arguments reach it, and rendering as transformers does."""

from __future__ import annotations

import json
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from openrlhf.config.disk import local_path
from openrlhf.datasets.samples import BadRow, Message
from openrlhf.datasets.tokenization.bounded_jinja import MAX_SOURCE_CHARACTERS
from openrlhf.datasets.tokenization.marked_template import MarkedRender, MarkedTemplate
from openrlhf.errors import UserError, first_line_of

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that templates read it by
NAMED_TEMPLATES = {"chatml": CHATML}
PROBE_CALL = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {"probe_key": "x"}}}
PROBE: list[Message] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]},
]


_OWN_TEMPLATE = """
{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
  {{ message.role ~ loop.index0 }}{% generation %}{{ message.content | trim }}{% endgeneration %}
    {%- if message.name is defined %}{{ message | tojson }}{% endif %}
    {%- for call in message.tool_calls or [] %}{{ call | tojson(indent=2, sort_keys=true) }}{% break %}{% endfor %}
{{ message.reasoning_content }}{{ message.thinking }}
{% endfor %}
{{ tools | tojson }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ strftime_now("%Y") }}
{{ ns.count }}{{ missing }}
"""


def resolve_chat_template(tokenizer: Any, given: str | None) -> str:
    """The Jinja text to render with: a named one, a file's, the given text, else the tokenizer's own.

    Raises UserError if there is none, or if it is no Jinja.
    """
    template = template_text(tokenizer, given)
    if template is None:
        raise UserError(
            "The rows are conversations, but the tokenizer has no chat template. "
            "Give one by --data.tokenizer_chat_template: chatml, a file, or Jinja text."
        )
    if len(template) > MAX_SOURCE_CHARACTERS:
        raise UserError(f"The chat template has {len(template):,} characters; {MAX_SOURCE_CHARACTERS:,} are allowed.")
    try:
        MarkedTemplate(template)
    except TemplateSyntaxError as error:
        raise UserError(f"The chat template is no valid Jinja: {error.message} (line {error.lineno}).") from error
    except UserError:
        raise
    except Exception as error:  # nested too deeply for Jinja or Python, a number of thousands of digits
        raise UserError(f"The chat template cannot be compiled: {first_line_of(error)}") from error
    return template


def template_text(tokenizer: Any, given: str | None) -> str | None:
    """The template that conversations would be rendered with, None if there is none; for the cache key."""
    names = {**NAMED_TEMPLATES, **templates_by_name(tokenizer)}
    if given in names:
        return names[given]
    if given is not None and "{" not in given:
        try:
            if (file := local_path(given)).is_file():
                return file.read_text(encoding="utf-8")
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # a name too long, a user unknown, a file that is not UTF-8
            raise UserError(f"--data.tokenizer_chat_template {given[:200]} cannot be read: {error}.") from error
        known = ", ".join(names)
        raise UserError(
            f"--data.tokenizer_chat_template {given!r} is no file, no known name ({known}) and no Jinja text."
        )
    try:
        return None if given is None and tokenizer.chat_template is None else tokenizer.get_chat_template(given)
    except ValueError as error:  # several by name, none of them the usual one
        raise UserError(f"The tokenizer's chat template cannot be chosen: {first_line_of(error)}") from error


def templates_by_name(tokenizer: Any) -> dict[str, str]:
    """Those of a tokenizer that has several."""
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}


class ChatRenderer:
    """Renders conversations with one template, exactly as `tokenizer.apply_chat_template` does, and with marks."""

    def __init__(self, tokenizer: Any, template: str):
        self._tokenizer = tokenizer
        self._source = template
        self._marked = MarkedTemplate(template)
        self._constant_prompt: str | None = None
        self._renders_as_we_do = _renders_as_we_do(tokenizer)
        self.has_generation_marks = self._marked.has_generation_marks
        self.content_as_null = not self._prints_call() and self._prints_call(content=None)
        self.arguments_as_text = self._wants_arguments_as_text()

    def render(self, messages: list[Message], tools: list[Any] | None) -> MarkedRender:
        """The conversation's text with its parts.

        Raises BadRow if the template refuses the conversation, or if the marks change its text.
        """
        messages = self._for_template(messages)
        try:
            render = self._render_marked(messages, tools, add_generation_prompt=False)
            text = self._text_to_compare(messages, tools)
        except UserError:
            raise
        except Exception as error:  # a template may fail in any way that Python can
            raise BadRow(f"the chat template refuses the conversation: {_said(error)}") from error
        if text not in (None, render.text):
            raise BadRow(
                "the template's text cannot be traced to its messages: it changes text after putting it together. "
                "Mark the assistant's part in the template with {% generation %}…{% endgeneration %}"
            )
        return render

    def text_of(self, messages: list[Message], tools: list[Any] | None) -> str:
        """The conversation's text: '' where the template refuses it. Raises UserError where it exceeds its bounds."""
        return self._tried(self._for_template(messages), tools) or ""

    def prompt_of(self, messages: list[Message], tools: list[Any] | None) -> str:
        """The conversation's text as a model is to go on from it. Raises BadRow where the template refuses it."""
        messages, flags = self._for_template(messages), {"add_generation_prompt": True}
        try:
            if self._renders_as_we_do:
                return self._text(messages, tools, **flags)
            template = self._tokenizer.apply_chat_template
            return str(template(messages, tools, chat_template=self._source, tokenize=False, **flags))
        except UserError:
            raise
        except Exception as error:
            raise BadRow(f"the chat template refuses the conversation: {_said(error)}") from error

    def _text_to_compare(self, messages: list[Message], tools: list[Any] | None) -> str | None:
        """None where it cannot be another one than that of the render with marks."""
        if not self._renders_as_we_do:
            return self._tokenizer.apply_chat_template(messages, tools, chat_template=self._source, tokenize=False)
        return self._text(messages, tools) if self._marked.can_see_marks else None

    def generation_prompt(self, messages: list[Message], tools: list[Any] | None, turn: int) -> str:
        """The text that the template prints for the model to go on from, before message `turn` is said."""
        if self._constant_prompt is not None:
            return self._constant_prompt
        messages = self._for_template(messages)
        history = messages[:turn] if turn else messages
        try:
            with_prompt = self._render_marked(history, tools, add_generation_prompt=True)
            without = self._render_marked(history, tools, add_generation_prompt=False)
        except UserError:
            raise
        except Exception as error:
            raise BadRow(f"the chat template refuses the conversation up to turn {turn + 1}: {_said(error)}") from error
        prompt = _prompt_of(with_prompt, without)
        if self._marked.constant_prompt:
            self._constant_prompt = prompt
        return prompt

    def _render_marked(self, messages: list[Message], tools: list[Any] | None, **flags: Any) -> MarkedRender:
        return self._marked.render(messages, tools=tools, documents=None, **self._tokenizer.special_tokens_map, **flags)

    def _text(self, messages: list[Message], tools: list[Any] | None, **flags: Any) -> str:
        names = {"documents": None, "add_generation_prompt": False, **self._tokenizer.special_tokens_map, **flags}
        return self._marked.text(messages, tools=tools, **names)

    def _for_template(self, messages: list[Message]) -> list[Message]:
        messages = [_with_reasoning_names(message) for message in messages]
        if self.content_as_null:
            messages = [_with_null_content(message) for message in messages]
        if self.arguments_as_text:
            messages = [with_arguments_as_text(message) for message in messages]
        return messages

    def _prints_call(self, **content: None) -> bool:
        """Whether a small call is printed: some templates ask for `content` that is none beside it."""
        probe = [PROBE[0], {**PROBE[1], **content}]
        forms = (probe, [with_arguments_as_text(message) for message in probe])
        return any("probe_key" in (self._tried(form) or "") for form in forms)

    def _wants_arguments_as_text(self) -> bool:
        """Some templates paste a call's arguments as text, others serialize an object: tried with a small call."""
        probe = [_with_null_content(message) if self.content_as_null else message for message in PROBE]
        as_object = self._tried(probe)
        as_text = self._tried([with_arguments_as_text(message) for message in probe])
        fails_with_objects = as_object is None or "{'probe_key'" in as_object
        return fails_with_objects and as_text is not None and '{"probe_key"' in as_text

    def _tried(self, messages: list[Message], tools: list[Any] | None = None) -> str | None:
        try:
            return self._text(messages, tools)
        except UserError:  # beyond its bounds: no other text would help
            raise
        except Exception:  # it cannot, in whatever way
            return None


def _renders_as_we_do(tokenizer: Any) -> bool:
    """Whether `apply_chat_template` prints what is printed here, of a template of our own.

    Templates from elsewhere are not given to it unless they must be: nothing there bounds their time and memory.
    """
    asked = {"role": "user", "content": "x é <b>", "reasoning_content": "y", "name": "z"}
    names = {"documents": None, "add_generation_prompt": False, **tokenizer.special_tokens_map}
    messages, tools = [_with_reasoning_names(one) for one in (*PROBE, asked)], [PROBE_CALL]
    ours = MarkedTemplate(_OWN_TEMPLATE).text(messages, tools=tools, **names)
    try:
        return ours == tokenizer.apply_chat_template(messages, tools, chat_template=_OWN_TEMPLATE, tokenize=False)
    except Exception:  # a class of the user's own may have other arguments
        return False


def _said(error: Exception) -> str:
    """The template's own words; of Python's errors the kind too."""
    words = first_line_of(error)
    return words if isinstance(error, TemplateError) else f"{type(error).__name__}: {words}"


def _with_reasoning_names(message: Message) -> Message:
    """A fresh copy of the message, its reasoning under each name that templates read."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_null_content(message: Message) -> Message:
    return {**message, "content": message["content"] or None} if "tool_calls" in message else message


def with_arguments_as_text(message: Message) -> Message:
    """A message whose tool calls have arguments of JSON text, as some templates and OpenAI's protocol want them."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _prompt_of(with_prompt: MarkedRender, without: MarkedRender) -> str:
    """The text printed for the model to go on from: only then, or (some templates) always, after the messages."""
    if with_prompt.text.startswith(without.text):
        return with_prompt.text[len(without.text) :] or without.text[without.loops_end :]
    if with_prompt.text[: with_prompt.loops_end] == without.text[: without.loops_end]:
        return with_prompt.text[with_prompt.loops_end :]
    raise BadRow("the template prints other messages when it prints a generation prompt")
