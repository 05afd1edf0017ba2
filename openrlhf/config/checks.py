"""Checks and notices of the settings of a training, for roots to list.

A check yields problems: sentences with flags, finding and remedy. A notice yields sentences about settings that are
right, and that the user should know something of.
"""

from __future__ import annotations

import importlib.util
import re
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING

from openrlhf.config.adapter_settings import ADAPTER_CHECKS, four_bits_package
from openrlhf.config.disk import data_source, data_sources, model_folder, split_names
from openrlhf.config.hub_settings import hub
from openrlhf.config.outputs import output_folders
from openrlhf.config.schema import Check, Notice, Root
from openrlhf.errors import how_to_install

if TYPE_CHECKING:
    from openrlhf.config.settings import DeepspeedConfig, MuonConfig, TrainingConfig

_SHARE = re.compile(r"\s*([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?\s*")
SHARES_IN_WORDS = "numbers above 0, from 1e-9 to 1e9, by commas, as 0.7,0.3"
_CALLBACK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def check_config(config: Root, world_size: int) -> list[str]:
    """All problems of a configuration on that many ranks, in words; the file system is looked at too."""
    return [problem for check in config.command.checks for problem in _found_by(check, config, world_size)]


def _found_by(check: Check, config: Root, world_size: int) -> list[str]:
    try:
        return list(check(config, world_size))
    except OSError as error:
        return [f"{str(error.filename)[:200]!r} is no name of a file or folder: {error.strerror}."]


def notices_of(config: Root) -> list[str]:
    """All that the user is told once at the start, in words."""
    return [sentence for notice in config.command.notices for sentence in notice(config)]


def _needed(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if not config.model.model_name_or_path:
        yield "--model.model_name_or_path is missing: give the folder of a model, or its name on the hub."
    if not config.data.dataset:
        yield "--data.dataset is missing: give a file, a folder or the name of a data set on the hub."


def _ranks(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ds = config.ds
    ranks_a_sample = ds.ring_attn_size * ds.tensor_parallel_size
    if world_size % ranks_a_sample:
        yield (
            f"--ds.ring_attn_size {ds.ring_attn_size} times --ds.tensor_parallel_size "
            f"{ds.tensor_parallel_size} is {ranks_a_sample}, which does not divide the {world_size} ranks of "
            "this run; start a multiple of it."
        )
        return
    data_ranks = world_size // ranks_a_sample
    if config.train.batch_size < data_ranks:
        yield (
            f"--train.batch_size {config.train.batch_size} is below the {data_ranks} ranks that each compute "
            f"samples of their own; make it at least {data_ranks}, or start fewer ranks."
        )


def _rows(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.ds.ring_attn_size > 1 and not config.ds.packing_samples:
        yield f"--ds.ring_attn_size {config.ds.ring_attn_size} shares a packed row: add --ds.packing_samples."
    budget = config.train.max_tokens_per_micro_batch
    if isinstance(budget, int) and budget * config.ds.ring_attn_size < config.data.max_len:
        yield (
            f"--train.max_tokens_per_micro_batch {budget} has no room for a sample of --data.max_len "
            f"{config.data.max_len} tokens; raise the first or lower the second."
        )


def sums_in_another_dtype(ds: DeepspeedConfig) -> bool:
    """Whether gradients are to add up in another dtype than that of the weights, which DeepSpeed does in ZeRO alone."""
    return ds.grad_accum_dtype not in (None, ds.param_dtype)


def _zero(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ds = config.ds
    if ds.tensor_parallel_size > 1 and ds.zero_stage == 3:
        yield (
            f"--ds.tensor_parallel_size {ds.tensor_parallel_size} does not go with --ds.zero_stage 3; "
            "use --ds.zero_stage 2 or less."
        )
    if ds.adam_offload and ds.zero_stage == 0:
        yield "--ds.adam_offload needs --ds.zero_stage 1, 2 or 3."
    if ds.zero_stage == 0 and sums_in_another_dtype(ds):
        yield (
            f"--ds.grad_accum_dtype {ds.grad_accum_dtype} needs --ds.zero_stage 1, 2 or 3: without ZeRO gradients are "
            "summed in the dtype of the weights."
        )
    if ds.zpg > 1 and ds.zero_stage in (0, 1, 2):
        yield f"--ds.zpg {ds.zpg} needs --ds.zero_stage 3, which alone splits weights; leave --ds.zpg out."
    if config.optim == "muon" and ds.adam_offload:
        yield "--ds.adam_offload moves Adam to the host, which --optim muon is not; leave one of them out."


def _zpg_ranks(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.ds.zpg > 1 and world_size % config.ds.zpg:
        yield f"--ds.zpg {config.ds.zpg} does not divide the {world_size} ranks of this run."


def muon_problems(muon: MuonConfig) -> Iterator[str]:
    """Settings of Muon that DeepSpeed's cannot have."""
    if muon.ns_steps != 5:
        yield f"--muon.ns_steps {muon.ns_steps}: DeepSpeed's Muon takes 5 steps and no other number; leave it out."
    if not muon.nesterov:
        yield "--muon.nesterov false: DeepSpeed's Muon has Nesterov's momentum and no other; leave it out."


def _muon(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.optim == "muon":
        yield from muon_problems(config.muon)


def _tensor_parallel(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ds = config.ds
    if ds.tensor_parallel_size == 1:
        return
    flag = f"--ds.tensor_parallel_size {ds.tensor_parallel_size}"
    if ds.ring_attn_size > 1:
        yield f"{flag} does not go with --ds.ring_attn_size {ds.ring_attn_size}; use one of them."
    if ds.lora.is_used:
        yield f"{flag} does not share out adapters; leave it or --ds.lora.rank out."
    if config.optim == "muon":
        yield f"{flag} leaves a rank parts of matrices, of which --optim muon needs the whole; leave one of them out."


def _liger(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.ds.use_liger_kernel and not importlib.util.find_spec("liger_kernel"):
        yield f"--ds.use_liger_kernel needs a package that is not installed: {how_to_install('liger')}."


def _compiled_layers(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ds = config.ds
    if config.model.compile_layers and (ds.zero_stage == 3 or ds.tensor_parallel_size > 1):
        flag = "--ds.zero_stage 3" if ds.zero_stage == 3 else f"--ds.tensor_parallel_size {ds.tensor_parallel_size}"
        yield f"--model.compile_layers needs weights that are whole on every rank: it does not go with {flag}."


def _compiler(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if not config.ds.deepcompile:
        return
    import torch  # here alone: no other check needs it, and it takes seconds to load

    if not torch.cuda.is_available():
        yield "--ds.deepcompile compiles for CUDA devices, and this machine has none; leave it out."


def _what_is_trained(config: TrainingConfig, world_size: int) -> Iterator[str]:
    data = config.data
    if config.model.pretrain_mode_enable and data.apply_chat_template:
        yield (
            "--model.pretrain_mode_enable takes plain text, --data.apply_chat_template renders chats; "
            "leave one of them out."
        )
    if data.multiturn and data.targets not in (None, "all_turns"):
        yield f"--data.multiturn means --data.targets all_turns, but --data.targets {data.targets} is given."


def input_template_problems(template: str) -> Iterator[str]:
    """Problems of a template for `str.format`, in which `{}` is the input's place and `{{` is a brace of the text."""
    try:
        places = [place for _, *place in string.Formatter().parse(template) if place[0] is not None]
    except ValueError:
        places = []
    is_in_place = places in ([["", "", None]], [["0", "", None]])  # a width, say, could fill the memory
    if not is_in_place:
        yield (
            f"--data.input_template {template!r} must hold the place of the input, {{}}, once, as in 'User: {{}}'; "
            "a brace of the text itself is written twice, {{ or }}."
        )


def _template(config: TrainingConfig, world_size: int) -> Iterator[str]:
    template = config.data.input_template
    if template is None:
        return
    yield from input_template_problems(template)
    if "\\n" in template:
        yield (
            f"--data.input_template {template!r} holds a backslash and an n, not a line break; "
            "in bash write $'User: {}\\nAssistant: '."
        )


def is_share(word: str) -> bool:
    """Whether a word of --data.dataset_probs is a number that rows can be shared out by."""
    return bool(_SHARE.fullmatch(word)) and 1e-9 <= float(word) <= 1e9


def _probabilities(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.data.dataset_probs is None:
        return
    words = config.data.dataset_probs.split(",")
    num_sets = len(split_names(config.data.dataset))
    if len(words) != num_sets:
        yield (
            f"--data.dataset_probs {config.data.dataset_probs} gives {len(words)} numbers, but "
            f"--data.dataset names {num_sets}; give one number for each, by commas."
        )
    if not all(map(is_share, words)):
        yield f"--data.dataset_probs {config.data.dataset_probs} must be {SHARES_IN_WORDS}."


def _evaluation(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.eval.steps > 0 and not config.eval.dataset:
        yield f"--eval.steps {config.eval.steps} has nothing to evaluate: add --eval.dataset or leave it out."
    if config.eval.every_epoch and not config.eval.dataset:
        yield "--eval.every_epoch has nothing to evaluate: add --eval.dataset or leave it out."
    patience, is_along_the_way = config.train.early_stop_patience, config.eval.steps > 0 or config.eval.every_epoch
    if patience is not None and not (config.eval.dataset and is_along_the_way):
        yield (
            f"--train.early_stop_patience {patience} counts evaluations along the way: add --eval.dataset and "
            "--eval.steps or --eval.every_epoch, or leave it out."
        )


def _prompts(config: TrainingConfig, world_size: int) -> Iterator[str]:
    settings = config.eval
    for source in split_names(settings.prompts or ""):
        yield from data_source("--eval.prompts", source)
    if settings.prompts is None and (settings.prompts_steps > 0 or settings.prompts_reward):
        flag = "--eval.prompts_steps" if settings.prompts_steps > 0 else "--eval.prompts_reward"
        yield f"{flag} has no prompts to be answered: add --eval.prompts, or leave it out."


def _callbacks(config: TrainingConfig, world_size: int) -> Iterator[str]:
    if config.train.callbacks is None:
        return
    for name in (part.strip() for part in config.train.callbacks.split(",")):
        if not _CALLBACK.fullmatch(name):
            yield f"--train.callbacks: {name!r} must be module:Name, as in my_package.callbacks:Sampler."


def _saving(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ckpt = config.ckpt
    saves = ckpt.saves_along_the_way
    if ckpt.save_hf and not saves:
        yield (
            "--ckpt.save_hf exports the model at each save, but no save is asked for: add --ckpt.save_steps, "
            "--ckpt.every_epoch or --ckpt.save_minutes (the trained model is exported at the end in any case)."
        )
    if saves and ckpt.disable_ds and not ckpt.save_hf:
        yield (
            "--ckpt.disable_ds leaves nothing for --ckpt.save_steps, --ckpt.every_epoch and --ckpt.save_minutes to "
            "save: leave it out, or add --ckpt.save_hf."
        )
    if ckpt.export_best and (ckpt.disable_ds or not saves or not config.eval.dataset):
        yield (
            "--ckpt.export_best goes back to a training checkpoint that was evaluated: it needs --eval.dataset, and "
            "--ckpt.save_steps, --ckpt.every_epoch or --ckpt.save_minutes without --ckpt.disable_ds. With it leave "
            "--ckpt.export_best out, and take the best of the models that --ckpt.save_hf exports."
        )


def _key(config: TrainingConfig) -> Iterator[str]:
    if config.logger.wandb.key:
        yield (
            "warning: the key of --logger.wandb.key can be read by others, in the list of processes and in the log of "
            "a launcher that prints its command line; set WANDB_API_KEY in the environment instead. The run itself "
            "writes the key to no log or file."
        )


def _warmup(config: TrainingConfig) -> Iterator[str]:
    if config.lr_warmup_ratio > 1:
        yield (
            f"--lr_warmup_ratio {config.lr_warmup_ratio:g} is a share of the steps, and above 1: the run ends before "
            f"the learning rate has risen, at {1 / config.lr_warmup_ratio:.2%} of its highest."
        )


def _universal_checkpoint(config: TrainingConfig) -> Iterator[str]:
    if config.ds.use_universal_ckpt:
        yield "--ds.use_universal_ckpt changes nothing: every checkpoint loads on any number of ranks and ZeRO stage."


_LAYOUT_CHECKS_ANYWHERE: tuple[Check, ...] = (
    _rows,
    _zero,
    _muon,
    _tensor_parallel,
    *ADAPTER_CHECKS,
    _compiled_layers,
)
# what the ranks of a training must have, in number and packages
PACKAGE_CHECKS: tuple[Check, ...] = (_liger, four_bits_package)
_RANK_CHECKS: tuple[Check, ...] = (_ranks, _zpg_ranks, *PACKAGE_CHECKS)
LAYOUT_CHECKS: tuple[Check, ...] = (*_LAYOUT_CHECKS_ANYWHERE, *_RANK_CHECKS)
# also for a command that is not the training itself: one process, perhaps on a machine without the training's packages
COMMON_CHECKS: tuple[Check, ...] = (
    _needed,
    *_LAYOUT_CHECKS_ANYWHERE,
    _what_is_trained,
    _template,
    _probabilities,
    _evaluation,
    _prompts,
    _callbacks,
    _saving,
    data_sources,
)
CHECKS_OF_TRAINING: tuple[Check, ...] = (*COMMON_CHECKS, *_RANK_CHECKS, _compiler, model_folder, output_folders, hub)


def _unused_template(config: TrainingConfig) -> Iterator[str]:
    if config.data.input_template is not None and config.data.apply_chat_template:
        yield "--data.input_template changes nothing beside --data.apply_chat_template, whose template alone is used."


COMMON_NOTICES: tuple[Notice, ...] = (_key, _warmup, _universal_checkpoint, _unused_template)
