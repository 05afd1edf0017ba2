"""What may be chosen about the way from rows to token ids: one frozen value, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openrlhf.config.checks import input_template_problems
from openrlhf.errors import UserError

TARGET_CHOICES = ("all_turns", "last_turn", "completion", "everything")
OVERLONG_CHOICES = ("drop", "truncate", "error")


@dataclass(frozen=True)
class DataSettings:
    """How rows become samples. All that changes a sample's ids or mask is here, and so in the cache key.

    Attributes:
        input_key: column of the prompt, the text or the messages; None: found by the format.
        output_key: column of the answer; None: the row holds no separate answer.
        input_template: text with one `{}` that the prompt is put into, for rows without a chat template.
        apply_chat_template: prompts and answers are rendered as a conversation.
        tokenizer_chat_template: Jinja text, a file that holds it, or `chatml`; None: the tokenizer's own.
        multiturn: every assistant turn is trained, not the last alone.
        format: `auto` or a name of `formats.FORMATS`.
        targets: one of `TARGET_CHOICES`; None: `all_turns` with `multiturn`, else `last_turn`.
        max_len: most tokens a sample may have.
        overlong: what happens to longer ones, one of `OVERLONG_CHOICES`.
        max_bad_rows: so many unusable rows are left out; one more stops the run.
        pretrain_mode: rows are plain text, every token after the first is a target.
    """

    input_key: str | None = None
    output_key: str | None = None
    input_template: str | None = None
    apply_chat_template: bool = False
    tokenizer_chat_template: str | None = None
    multiturn: bool = False
    format: str = "auto"
    targets: str | None = None
    max_len: int = 2048
    overlong: str = "drop"
    max_bad_rows: int = 0
    pretrain_mode: bool = False

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError(*problems)

    def _problems(self) -> Iterator[str]:
        if self.targets is not None and self.targets not in TARGET_CHOICES:
            yield f"--data.targets is {self.targets!r}: choose one of {', '.join(TARGET_CHOICES)}."
        if self.overlong not in OVERLONG_CHOICES:
            yield f"--data.overlong is {self.overlong!r}: choose one of {', '.join(OVERLONG_CHOICES)}."
        if self.max_len < 2:
            yield f"--data.max_len is {self.max_len}: a sample needs two tokens at least."
        if self.max_bad_rows < 0:
            yield f"--data.max_bad_rows is {self.max_bad_rows}: give 0 or more."
        if self.input_template is not None:
            yield from input_template_problems(self.input_template)

    @property
    def target_choice(self) -> str:
        """Which tokens are trained, with the default resolved."""
        if self.pretrain_mode:
            return "everything"
        return self.targets or ("all_turns" if self.multiturn else "last_turn")
