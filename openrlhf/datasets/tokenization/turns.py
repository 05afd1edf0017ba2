"""The assistant messages of a conversation that are trained, and the characters that the assistant says in them.

A conversation is rendered once, with marks that tell the message of each character (`marked_template.py`). So the
region of a message is known; left to find is where in it the answer begins and ends:

    region   <|im_start|>assistant⏎Hello!<|im_end|>⏎
    answer                         Hello!<|im_end|>

It begins behind the generation prompt, since a model goes on from there, and ends behind the closing token, which
tells a model to stop. A template with `{% generation %}` blocks says both itself. A row is refused where either is
not certain.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from openrlhf.config import DataConfig
from openrlhf.datasets.samples import BadRow, Conversation, LeftOut, Message
from openrlhf.datasets.tokenization.chat_template import REASONING, ChatRenderer
from openrlhf.datasets.tokenization.marked_template import CharSpan, MarkedRender

_REASONING_SCAFFOLD = re.compile(r"\s*[<\[◁][^\s<>\[\]◁▷]{0,8}(think|reason)", re.IGNORECASE)
_TAG = secrets.token_hex(8)  # it stands for a tool's result
REMEDY = "Mark what the assistant says in the template with {% generation %}…{% endgeneration %}"


def target_choice(data: DataConfig, pretrain_mode: bool) -> str:
    """The tokens that are trained, as `--data.targets` names them, with the default resolved."""
    if pretrain_mode:
        return "everything"
    return data.targets or ("all_turns" if data.multiturn else "last_turn")


def chosen_turns(conversation: Conversation, choice: str) -> list[int]:
    """Indices of the assistant messages that `choice` (a value of `--data.targets`) trains.

    Raises LeftOut if there is none, BadRow if one of them says nothing.
    """
    messages = conversation.messages
    assistant = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not assistant:
        raise LeftOut("no assistant turn")
    chosen = [index for index in _by_choice(conversation, assistant, choice) if conversation.weights[index] > 0]
    for index in chosen:
        says = any(messages[index].get(key) for key in (*REASONING, "tool_calls"))
        if not says and not messages[index]["content"].strip():
            raise BadRow(f"turn {index + 1}: the assistant's answer is empty")
    if not chosen:
        raise LeftOut("no assistant turn to train")
    return chosen


def _by_choice(conversation: Conversation, assistant: list[int], choice: str) -> list[int]:
    if choice == "last_turn":
        return assistant[-1:]
    if choice == "completion":
        begin = conversation.num_prompt_messages
        if begin is None:
            users = [index for index, message in enumerate(conversation.messages) if message["role"] == "user"]
            begin = users[-1] + 1 if users else 0
        return [index for index in assistant if index >= begin]
    return assistant


class TurnSpans:
    """Finds the assistant's spans in renders of one template."""

    def __init__(self, renderer: ChatRenderer, tokenizer: Any):
        self._renderer = renderer
        self._eos = tokenizer.eos_token
        # Texts that the tokenizer reads as one token of their own, the longest first.
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
        self._specials = sorted({token.content for token in added}, key=len, reverse=True)
        # Those that may close a turn; `</tool_call>`, which is no special token, ends a call.
        closing = {token.content for token in added if token.special or token.content == self._eos}
        self._closing = sorted(closing, key=len, reverse=True)

    def of(self, conversation: Conversation, render: MarkedRender, turns: list[int]) -> list[tuple[int, CharSpan]]:
        """(message, span) of what the given messages say, closing token included, in the order of the text.

        Raises BadRow naming the turn whose span cannot be found exactly.
        """
        if self._renderer.has_generation_marks:
            return self._marked_spans(render, turns)
        self._check_no_results(conversation, render, turns)
        return [(turn, self._span(conversation, render, turn)) for turn in turns]

    def _marked_spans(self, render: MarkedRender, turns: list[int]) -> list[tuple[int, CharSpan]]:
        wanted = set(turns)
        blocks = [(owner, span) for owner, span in render.generations if span.end > span.start]
        if any(owner is None for owner, _ in blocks):
            raise BadRow("a {% generation %} block stands outside of a plain loop over the messages")
        return [(turn, self._up_to_closing(render, turn, span)) for turn, span in blocks if turn in wanted]

    def _up_to_closing(self, render: MarkedRender, turn: int, span: CharSpan) -> CharSpan:
        """A block that stops just short of its turn's closing token takes it in."""
        if self._is_closed(render.text[span.start : span.end]):
            return span
        region_end = max(region.end for region in render.regions[turn])
        closing = next((token for token in self._closing if render.text.startswith(token, span.end)), "")
        end = span.end + len(closing)
        return CharSpan(span.start, end) if end <= region_end else span

    def _check_no_results(self, conversation: Conversation, render: MarkedRender, turns: list[int]) -> None:
        """Raises BadRow where an answer's round prints results of tools, which have no round of their own."""
        messages = conversation.messages
        hidden = {
            number
            for number, message in enumerate(messages)
            if message["role"] == "tool" and not _printed(render, number).strip()
        }
        if not hidden:
            return
        named = [{**one, "content": _TAG} if number in hidden else one for number, one in enumerate(messages)]
        tagged = self._renderer.render(named, conversation.tools)
        for turn in turns:
            if _TAG in _printed(tagged, turn):
                raise BadRow(
                    f"turn {turn + 1}: the template prints results of tools within this message, where they would be "
                    f"trained as what the assistant says. {REMEDY}"
                )

    def _span(self, conversation: Conversation, render: MarkedRender, turn: int) -> CharSpan:
        region = _only_region(render, turn, is_last=turn == len(conversation.messages) - 1)
        message = conversation.messages[turn]
        _check_says(render.text[region.start : region.end], message, turn)
        prompt = self._renderer.generation_prompt(conversation.messages, conversation.tools, turn)
        follows_assistant = turn > 0 and conversation.messages[turn - 1]["role"] == "assistant"
        start = self._start(render.text, region, prompt, follows_assistant, turn)
        # What is printed behind the loops may be the whole history, which then looks like a generation prompt.
        in_loop = region in render.regions.get(turn, [])
        if not in_loop or start == region.start and not follows_assistant:
            self._check_no_header(render.text[start : region.end], message, turn)
        return CharSpan(start, self._end(render.text, region))

    def _start(self, text: str, region: CharSpan, prompt: str, follows_assistant: bool, turn: int) -> int:
        """The place that the model goes on from: behind the text that the template prints as generation prompt."""
        said = text[region.start : region.end]
        # The usual case: the region begins with the generation prompt, perhaps behind white space or a special token.
        for head in self._heads(prompt):
            position = said.find(head)
            if position >= 0 and self._is_filler(said[:position]):
                return region.start + position + len(head)
        # The prompt is printed before the region (at the end of the user's turn), or says nothing, or is not repeated
        # for a second assistant message in a row: the whole region is the answer.
        if self._is_filler(prompt) or text[: region.start].endswith(prompt) or follows_assistant:
            return region.start
        raise BadRow(
            f"turn {turn + 1}: the template's generation prompt {prompt!r} is not how this turn begins "
            f"({said[:40]!r}), so where the answer starts is not certain. {REMEDY}"
        )

    def _check_no_header(self, said: str, message: Message, turn: int) -> None:
        """Without a generation prompt, nothing tells a printed header from an answer; only reasoning may come first."""
        content = message["content"].strip()
        if "tool_calls" in message and "".join(content.split()) not in "".join(said.split()):
            return  # the template prints the calls alone, as of an answer without content
        before = said.partition(content)[0] if content else ""
        if before.strip() and not _REASONING_SCAFFOLD.match(before) and not self._is_reasoning(before, message):
            raise BadRow(
                f"turn {turn + 1}: the template prints {before!r} before the answer but has no generation prompt "
                f"(add_generation_prompt), so nothing tells whether the model is to say it. {REMEDY}"
            )

    def _is_reasoning(self, before: str, message: Message) -> bool:
        """Whether it is the message's own reasoning behind a special token (`<|channel>thought`)."""
        reasoning = next((message[key] for key in REASONING if message.get(key)), "")
        is_held = isinstance(reasoning, str) and reasoning.strip() in before
        return bool(reasoning) and is_held and before.lstrip().startswith(tuple(self._specials))

    def _heads(self, prompt: str) -> list[str]:
        """Texts that may open a turn, longest first: the prompt, and the prompt cut before its reasoning scaffold.

        A prompt may end with `<think>`; an answer without reasoning is then printed behind the text before it.
        """
        ends = [match.start() for match in _REASONING_SCAFFOLD.finditer(prompt)]
        ends += [match.end() for match in re.finditer(r"\s+", prompt) if _REASONING_SCAFFOLD.match(prompt, match.end())]
        if not prompt.strip():
            return [prompt] if prompt else []
        return [prompt, *(prompt[:end] for end in sorted(ends, reverse=True) if prompt[:end].strip())]

    def _is_filler(self, text: str) -> bool:
        for special in self._specials:
            text = text.replace(special, "")
        return not text.strip()

    def _end(self, text: str, region: CharSpan) -> int:
        """The place behind the closing token; white space that the template prints after it is nobody's answer."""
        said = text[region.start : region.end]
        end = region.start + len(said.rstrip())
        # Some templates print the end token once, behind the loop over messages: it closes the last answer.
        if not self._is_closed(said) and self._eos and text.startswith(self._eos, region.end):
            return region.end + len(self._eos)
        return end

    def _is_closed(self, text: str) -> bool:
        return text.rstrip().endswith(tuple(self._closing))


def _printed(render: MarkedRender, turn: int) -> str:
    return "".join(render.text[span.start : span.end] for span in render.regions.get(turn, []))


def _only_region(render: MarkedRender, turn: int, is_last: bool) -> CharSpan:
    """The one stretch of text that a message was printed to; some templates print the last one after their loop."""
    regions = [span for span in render.regions.get(turn, []) if render.text[span.start : span.end].strip()]
    if not regions and is_last and render.text[render.loops_end :].strip():
        return CharSpan(render.loops_end, len(render.text))
    if len(regions) == 1:
        return regions[0]
    found = "prints nothing for" if not regions else f"prints {len(regions)} separate pieces for"
    raise BadRow(f"turn {turn + 1}: the template {found} this message in a plain loop over the messages. {REMEDY}")


def _check_says(region: str, message: Message, turn: int) -> None:
    """The region holds what the message says (or what is left of it when the template strips its reasoning)."""
    content = message["content"]
    if message.get("tool_calls") or not content.strip():
        return
    printed = "".join(region.split())
    candidates = {content, content.rpartition("</think>")[2]}
    if not any("".join(candidate.split()) in printed for candidate in candidates):
        raise BadRow(f"turn {turn + 1}: the template does not print what this assistant message says")
