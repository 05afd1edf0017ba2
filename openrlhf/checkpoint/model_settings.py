"""All files of an exported model but its weights: tokenizer, configuration, generation settings."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from openrlhf.atomic_file import flush_to_disk
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.datasets.samples import BadRow
from openrlhf.datasets.tokenization.chat_template import ChatRenderer, resolve_chat_template
from openrlhf.engine.model_internals import own_end_token_ids, padding_position
from openrlhf.engine.parameters import model_dtype
from openrlhf.errors import UserError, first_line_of
from openrlhf.models.limits import has_embedding
from openrlhf.models.reward_statistics import save_beside_adapter

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_ANSWER = "answer"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]


def write_settings(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write them, flush the whole folder, and open them again."""
    from transformers import AutoConfig, AutoTokenizer

    save_settings(model, tokenizer, folder)
    is_adapter = hasattr(model, "peft_config")
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)
    if not is_adapter and not model.is_remote_code():
        AutoConfig.from_pretrained(folder, local_files_only=True)
        if tokenizer is not None:
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fault_point("export.read_back")


def save_settings(model: Any, tokenizer: Any, folder: Path) -> None:
    """All files of a model but its weights, neither flushed nor read back."""
    base = base_of(model)
    tokenizer, _ = tokenizer_for(base, tokenizer)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if base.can_generate():
        generation_config_for(base, tokenizer).save_pretrained(folder)
    if base is model:
        _write_config(model, tokenizer, folder)
        _copy_processor(model, folder)
    else:
        save_beside_adapter(base.config, folder)


def _copy_processor(model: Any, folder: Path) -> None:
    """Of a model that also sees or hears: its base's, without which it is given no images. Text alone is trained."""
    if model.config.get_text_config() is model.config or not model.name_or_path:
        return
    for name in _PROCESSOR_FILES:
        try:
            found = cached_file(model.name_or_path, name)
        except OSError:  # the base has no such file
            continue
        if found is not None and Path(found).parent != folder:
            shutil.copyfile(found, folder / name)


def notes_of_export(model: Any, tokenizer: Any) -> list[str]:
    """What is written otherwise than it was, in words."""
    base = base_of(model)
    _, of_generation = mended(base.generation_config) if base.can_generate() else (None, None)
    _, of_tokenizer = tokenizer_for(base, tokenizer)
    if base.can_generate() and _pads_beyond(base, tokenizer):
        of_tokenizer = f"{_no_embedding(tokenizer)}: the exported configuration leaves its id out."
    notes = [of_generation and f"generation_config.json of the model {of_generation}.", of_tokenizer]
    return [note for note in notes if note]


def base_of(model: Any) -> Any:
    """The model of transformers, also inside PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def tokenizer_for(model: Any, tokenizer: Any) -> tuple[Any, str | None]:
    """The tokenizer to save with the model, and what was changed in words.

    A classifier of transformers reads its value at a row's last token that is not the pad token. Where answers end with
    that token, it would read the one before; a copy then pads with another one, or with none. So it does where the
    model has no embedding for the pad token.
    """
    if model.can_generate() or tokenizer is None:
        return tokenizer, None
    is_beyond = _pads_beyond(model, tokenizer)
    if not is_beyond and tokenizer.pad_token_id not in end_token_ids(tokenizer):
        return tokenizer, None
    reason = _no_embedding(tokenizer) if is_beyond else f"answers end with the pad token, {tokenizer.pad_token}"
    taken, copied = {*end_token_ids(tokenizer), None}, copy.deepcopy(tokenizer)
    special = {id_: str(one) for id_, one in tokenizer.added_tokens_decoder.items() if one.special}
    others = [token for id_, token in special.items() if id_ not in taken and has_embedding(model.config, id_)]
    pad = min(others, key=lambda token: "pad" not in token.lower(), default=None)
    copied.pad_token = pad
    if pad is None:
        return copied, (
            f"{reason}, and there is no other special token: the exported model has none, and transformers scores one "
            "answer at a time."
        )
    return copied, f"{reason}: the exported tokenizer pads with {pad}."


def _pads_beyond(model: Any, tokenizer: Any) -> bool:
    """Whether the tokenizer has a pad token that the model has no embedding for: it was added without a resize."""
    pad_token_id = getattr(tokenizer, "pad_token_id", None)
    return pad_token_id is not None and not has_embedding(model.config, pad_token_id)


def _no_embedding(tokenizer: Any) -> str:
    return f"the model has no embedding for the pad token, {tokenizer.pad_token}"


def _write_config(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config()):  # of a composite, its text part alone generates
        if hasattr(part, "use_cache"):
            part.use_cache = True  # training turns it off; generation without it is slow
    config.architectures = [type(model).__name__]
    config.dtype = str(model_dtype(model)).removeprefix("torch.")
    if tokenizer is not None:
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.pad_token_id = _pad_token_id_for(model, tokenizer)
        config.get_text_config().pad_token_id = config.pad_token_id  # where a classifier looks for it
    if model.is_remote_code():
        custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)


def _pad_token_id_for(model: Any, tokenizer: Any) -> int | None:
    """The tokenizer's; where that ends answers, the base's own, or none: torch trains no embedding of a pad token.

    One that the model has no embedding for is passed over, too: with its id nothing opens the model. A model whose
    positions depend on the id keeps the one that it was trained with.

    Generation asks its own settings. A classifier needs one, and has none that ends answers: see `tokenizer_for`.
    """
    if (row := padding_position(model)) is not None:
        return row
    if not model.can_generate():
        return tokenizer.pad_token_id
    ends = (*end_token_ids(tokenizer, model), None)
    ids: Any = (tokenizer.pad_token_id, getattr(model.config.get_text_config(), "pad_token_id", None))
    return next((id_ for id_ in ids if id_ not in ends and has_embedding(model.config, id_)), None)


def generation_config_for(model: Any, tokenizer: Any) -> Any:
    """A copy of the model's generation settings whose end, pad and start tokens are the tokenizer's.

    `eos_token_id` is one id, or a list where answers end with several: see `end_token_ids`. Settings that
    transformers would refuse to save are mended: see `mended`.
    """
    config, _ = mended(model.generation_config)
    if tokenizer is None:
        return config
    end_ids = end_token_ids(tokenizer, model)
    config.eos_token_id = end_ids[0] if len(end_ids) == 1 else end_ids or None
    config.pad_token_id = None if _pads_beyond(model, tokenizer) else tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    return config


def mended(generation_config: Any) -> tuple[Any, str | None]:
    """A copy that transformers saves, and what was mended in words; None where it was right.

    A temperature or another setting of sampling without `do_sample` means sampling. What is wrong beyond this is left
    out: the settings are then transformers' own.
    """
    config = copy.deepcopy(generation_config)
    problem = _problem_of(config)
    if problem is None:
        return config, None
    config.do_sample = True
    if _problem_of(config) is None:
        return config, "has settings of sampling without do_sample: the exported model has do_sample true"
    return type(config)(), f"cannot be saved ({problem}): the exported model has the usual settings"


def _problem_of(generation_config: Any) -> str | None:
    try:
        generation_config.validate(strict=True)
    except (ValueError, TypeError) as error:
        return first_line_of(error)
    return None


def end_token_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Ids that end an answer, each once: the tokenizer's end token, the chat template's end of a turn, the model's own.

    Args: model: of transformers; None: it has none of its own.
    """
    ids = (tokenizer.eos_token_id, end_of_turn_token_id(tokenizer))
    own = () if model is None else _fitting_end_token_ids(model, tokenizer)
    return list(dict.fromkeys(id_ for id_ in (*ids, *own) if id_ is not None))


def _fitting_end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The model's own end tokens that fit the tokenizer, such as `<|call|>` of gpt-oss and `<|user|>` of GLM-4.

    They may belong to another tokenizer or template. So they must be tokens of their own, and none that opens an
    answer, which some templates print inside of one again.
    """
    opening = set(tokenizer(text_before_answer(tokenizer), add_special_tokens=False)["input_ids"])
    known = tokenizer.added_tokens_decoder.keys() - opening
    return [id_ for id_ in own_end_token_ids(model) if id_ in known]


def note_end_token(model: Any, tokenizer: Any, end_id: int | None) -> None:
    """Adds the token that the data end answers with to the model's own end tokens; None: the data do not say."""
    base = base_of(model)
    if end_id is None or end_id not in tokenizer.added_tokens_decoder or not base.can_generate():
        return
    known = own_end_token_ids(base)
    if end_id not in known:
        base.generation_config.eos_token_id = [*known, end_id]


def end_of_turn_token_id(tokenizer: Any) -> int | None:
    """The special token that the chat template puts first after an assistant's turn, if there is one."""
    ids = tokenizer(text_behind_answer(tokenizer), add_special_tokens=False)["input_ids"]
    special_ids = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id_ for id_ in ids if id_ in special_ids or id_ in tokenizer.all_special_ids), None)


def text_behind_answer(tokenizer: Any) -> str:
    """What the chat template prints behind the last turn of an assistant; empty without a template."""
    return text_around_answer(tokenizer).rpartition(_ANSWER)[2]


def text_around_answer(tokenizer: Any) -> str:
    """What the chat template prints of a question and its answer, with both; empty without a template."""
    return _by_template(tokenizer, lambda renderer: renderer.text_of(_TURNS, None))


def text_before_answer(tokenizer: Any) -> str:
    """What the chat template prints for a model to answer behind; empty without a template."""
    return _by_template(tokenizer, lambda renderer: renderer.generation_prompt(_TURNS, None, 1))


def _by_template(tokenizer: Any, ask: Callable[[ChatRenderer], str]) -> str:
    """The template's answer; empty without a template, and where it is no Jinja or refuses two plain turns."""
    if not tokenizer.chat_template:
        return ""
    try:
        return ask(ChatRenderer(tokenizer, resolve_chat_template(tokenizer, None)))
    except (UserError, BadRow):
        return ""
