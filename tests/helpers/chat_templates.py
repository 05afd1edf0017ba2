"""Chat templates built in the manner of the families in use, each with and without generation marks.

`<G>` and `</G>` stand where a marked template has `{% generation %}` and `{% endgeneration %}`. Beside each template
stands, in plain Python that knows nothing of Jinja, what the assistant says in a turn: the text that must be trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.helpers.tokenizers import tiny_tokenizer

Said = Callable[[dict, bool], str]


@dataclass(frozen=True)
class Family:
    """A template family.

    Attributes:
        source: the template with `<G>` marks.
        said: (assistant message, does a user message follow) → the turn as the model must say it.
        specials: special tokens beyond the tiny tokenizer's own.
        tools: prints tools and tool calls.
        system: takes a system message.
        with_bos: prints the tokenizer's start token.
    """

    name: str
    source: str
    said: Said
    specials: tuple[str, ...] = ()
    tools: bool = False
    system: bool = True
    with_bos: bool = False

    def template(self, marked: bool) -> str:
        begin, end = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
        return self.source.replace("<G>", begin).replace("</G>", end)

    def tokenizer(self, marked: bool) -> PreTrainedTokenizerFast:
        return tiny_tokenizer(self.template(marked), with_bos=self.with_bos, extra_special_tokens=self.specials)


def _content(message: dict, _: bool) -> str:
    return message["content"]


def _calls(message: dict) -> list[tuple[str, dict]]:
    calls = message.get("tool_calls") or []
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def _hermes_calls(message: dict) -> str:
    said = message["content"]
    for name, arguments in _calls(message):
        said += f'\n<tool_call>\n{{"name": "{name}", "arguments": {_json(arguments)}}}\n</tool_call>'
    return said


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


CHATML = Family(
    "chatml",
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}<G>{{ message['content'] + '<|im_end|>' }}</G>{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    lambda message, _: message["content"] + "<|im_end|>",
)

LLAMA3 = Family(
    "llama3_headers",
    "{% for message in messages %}"
    "{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}<G>{{ message['content'] | trim }}{{ '<|eot_id|>' }}</G>"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    lambda message, _: message["content"].strip() + "<|eot_id|>",
    specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    with_bos=True,
)

MISTRAL = Family(
    "mistral_brackets",
    """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] ' + message['content'] + '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}<G>{{ '[TOOL_CALLS]' if loop.first else ', ' }}
            {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
            {{- eos_token if loop.last else '' }}</G>{%- endfor %}
    {%- else %}<G>{{ ' ' + message['content'] + eos_token }}</G>{%- endif %}
{%- endfor %}""",
    lambda message, _: (
        (
            "[TOOL_CALLS]"
            + ", ".join(f'{{"name": "{name}", "arguments": {_json(arguments)}}}' for name, arguments in _calls(message))
            if message.get("tool_calls")
            else " " + message["content"]
        )
        + "<|endoftext|>"
    ),
    specials=("[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"),
    tools=True,
    with_bos=True,
)

GEMMA = Family(
    "gemma_merged_system",
    """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = '' -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}
    {%- if role == 'model' -%}<G>{{ message['content'] | trim }}{{ '<end_of_turn>' }}</G>{{ '\n' }}
    {%- else -%}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}""",
    lambda message, _: message["content"].strip() + "<end_of_turn>",
    specials=("<start_of_turn>", "<end_of_turn>"),
    with_bos=True,
)

HERMES_TOOLS = Family(
    "tools_in_system_turn",
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}<G>{{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}</G>{{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    lambda message, _: _hermes_calls(message) + "<|im_end|>",
    tools=True,
)


def _without_reasoning(text: str) -> str:
    return text.split("</think>")[-1].lstrip("\n")


def _stripping_said(message: dict, is_followed_by_user: bool) -> str:
    reasoning = message.get("reasoning_content", "")
    head = "" if is_followed_by_user else f"<think>\n{reasoning.strip()}\n</think>\n\n"
    return head + _hermes_calls({**message, "content": _without_reasoning(message["content"])}) + "<|im_end|>"


STRIPS_REASONING = Family(
    "strips_earlier_reasoning",
    """{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == 'user' %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {{- '<|im_start|>assistant\\n' }}<G>
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<think>\\n' + reasoning.strip() + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}</G>{{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    _stripping_said,
    tools=True,
)

DEEPSEEK = Family(
    "prompt_opens_reasoning",
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'tool' %}{{ '<｜tool｜>' + message['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' }}<G>{{ message['content'].split('</think>')[-1] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<｜call｜>' + call['function']['name'] + '\n' + call['function']['arguments'] }}{% endfor %}"
    "{{ eos_token }}</G>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    lambda message, _: (
        message["content"].split("</think>")[-1]
        + "".join(f"<｜call｜>{name}\n{_json(arguments)}" for name, arguments in _calls(message))
        + "<|endoftext|>"
    ),
    specials=("<｜User｜>", "<｜Assistant｜>", "<｜tool｜>", "<｜call｜>"),
    tools=True,
    with_bos=True,
)

TRIMS = Family(
    "trims_white_space",
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}<G>{{ message['content'].strip() + '<|end|>' }}</G>"
    "{% else %}{{ message['content'].strip() + '<|end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    lambda message, _: message["content"].strip() + "<|end|>",
    specials=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)

REFUSES_SYSTEM = Family(
    "refuses_system_turns",
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|assistant|>' }}<G>{{ message['content'] + '<|end|>' }}</G>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    lambda message, _: message["content"] + "<|end|>",
    specials=("<|user|>", "<|assistant|>", "<|end|>"),
    system=False,
)

VICUNA = Family(
    "plain_words",
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT:' }}<G>{{ ' ' + message['content'] + eos_token }}</G>{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    lambda message, _: " " + message["content"] + "<|endoftext|>",
)

USER_PRINTS_HEADER = Family(
    "user_turn_prints_the_header",
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<G>{{ message['content'] + '<|end|>' }}</G>{{ '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% else %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}",
    lambda message, _: message["content"] + "<|end|>",
    specials=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    with_bos=True,
)


def _harmony_said(message: dict, is_followed_by_user: bool) -> str:
    said = ""
    if message.get("reasoning_content") and not is_followed_by_user:
        said = f"<|channel|>analysis<|message|>{message['reasoning_content']}<|end|><|start|>assistant"
    calls = _calls(message)
    if calls:
        name, arguments = calls[0]
        return said + f" to=functions.{name}<|channel|>commentary json<|message|>{_json(arguments)}<|call|>"
    return said + f"<|channel|>final<|message|>{message['content']}<|end|>"


HARMONY = Family(
    "channels_through_macros",
    """{%- macro turn(role, text) -%}
{{- '<|start|>' + role + '<|message|>' + text + '<|end|>' -}}
{%- endmacro -%}
{%- macro call(function) -%}
{{- ' to=functions.' + function.name + '<|channel|>commentary json<|message|>' -}}
{{- function.arguments|tojson + '<|call|>' -}}
{%- endmacro -%}
{%- set ns = namespace(last_user=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role != 'assistant' -%}
        {{- turn('functions' if message.role == 'tool' else message.role, message.content) -}}
    {%- else -%}
        {{- '<|start|>assistant' -}}<G>
        {%- if message.reasoning_content and loop.index0 > ns.last_user -%}
            {{- '<|channel|>analysis<|message|>' + message.reasoning_content + '<|end|><|start|>assistant' -}}
        {%- endif -%}
        {%- if message.tool_calls -%}
            {{- call(message.tool_calls[0].function) -}}
        {%- else -%}
            {{- '<|channel|>final<|message|>' + message.content + '<|end|>' -}}
        {%- endif -%}</G>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}""",
    _harmony_said,
    specials=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
    tools=True,
)

NO_CLOSING = Family(
    "no_closing_token",
    "{{ '[gMASK]<sop>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}<G>{{ message['content'] | trim }}</G>"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    lambda message, _: message["content"].strip(),
    specials=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
)

FAMILIES = [
    CHATML,
    LLAMA3,
    MISTRAL,
    GEMMA,
    HERMES_TOOLS,
    STRIPS_REASONING,
    DEEPSEEK,
    TRIMS,
    REFUSES_SYSTEM,
    VICUNA,
    USER_PRINTS_HEADER,
    HARMONY,
    NO_CLOSING,
]

ALWAYS_PROMPTS = Family(
    "always_prints_the_prompt",
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|turn|><|bot|>' }}"
    "<G>{{ '<|say|>' + message['content'] + '<|end|>' }}</G>"
    "{% else %}{{ '<|turn|>' + message['role'] + ': ' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{{ '<|turn|><|bot|>' }}",
    lambda message, _: "<|say|>" + message["content"] + "<|end|>",
    specials=("<|turn|>", "<|bot|>", "<|say|>", "<|end|>"),
)

LAST_AFTER_LOOP = Family(
    "prints_the_last_turn_after_its_loop",
    "{% set history = messages[:-1] if messages[-1]['role'] == 'assistant' else messages %}"
    "{% for message in history %}"
    "{% if message['role'] == 'assistant' %}{{ '<|bot|>\n' + message['content'] + '\n<|end|>\n\n' }}"
    "{% else %}{{ '<|user|>' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|>\n' }}"
    "{% elif messages[-1]['role'] == 'assistant' %}{{ '<|bot|>\n' + messages[-1]['content'] + '\n<|end|>\n\n' }}"
    "{% endif %}",
    lambda message, _: message["content"] + "\n<|end|>",
    specials=("<|user|>", "<|bot|>", "<|end|>"),
)

UNMARKED_ONLY = [LAST_AFTER_LOOP]
FAMILIES.append(ALWAYS_PROMPTS)
