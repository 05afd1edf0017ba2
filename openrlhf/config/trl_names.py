"""Names of TRL, Open-R1 and verifiers, each with its default there and what it becomes here.

A field's rule says what becomes of it: the setting with the same value, nothing (and why), or a refusal (and what to do
instead). A field without a rule is a part of what `trl_translation.py` works out from several.
"""

from __future__ import annotations

import dataclasses
from typing import Any


class Rule(str):
    """What becomes of a name, in words, as `--help` of a script shows it. One of the first three is given.

    Attributes:
        setting: dotted name of the setting that has the same value.
        idle: why it changes nothing.
        remedy: what to do instead; another value than the default is refused.
        note: what the setting means otherwise.
    """

    setting: str
    idle: str
    remedy: str
    note: str

    def __new__(cls, setting: str = "", idle: str = "", remedy: str = "", note: str = "") -> Rule:
        words = setting or (f"changes nothing here: {idle}" if idle else f"refused here: {remedy}")
        rule = super().__new__(cls, words)
        rule.setting, rule.idle, rule.remedy, rule.note = setting, idle, remedy, note
        return rule


def _field(default: Any, rule: Rule, repr: bool = True) -> Any:
    return dataclasses.field(default=default, repr=repr, metadata={"help": rule})


def _setting(default: Any, name: str, note: str = "") -> Any:
    return _field(default, Rule(setting=name, note=note))


def _idle(default: Any, why: str) -> Any:
    return _field(default, Rule(idle=why))


def _secret(default: Any, why: str) -> Any:
    """As `_idle`; its value is shown nowhere (`is_secret`)."""
    return _field(default, Rule(idle=why), repr=False)


def _refused(default: Any, remedy: str) -> Any:
    return _field(default, Rule(remedy=remedy))


_ROWS_READ = "prepared rows are read from disk by page"
_LAUNCH = "ranks are joined by openrlhf"
_NO_NUMBER = "it changes no number"
BESIDE_A_RECIPE = "python -m openrlhf.cli.train_sft with the recipe takes"
_PUSHES = "the exported model alone is pushed: at the end of a command, in a script by save_model() and push_to_hub()"
_ANSWERS = "for samples along the way use --eval.prompts"
_ZERO_3 = "a deepspeed file of stage 3 (in a recipe ds.zero_stage 3, too)"


@dataclasses.dataclass
class TrainingNames:
    """`transformers.TrainingArguments`, with the defaults of `trl.SFTConfig` where TRL has its own."""

    output_dir: str | None = None
    overwrite_output_dir: bool = _idle(False, "files of an earlier run stay, under other names")
    do_train: bool = _idle(False, "the command trains")
    do_eval: bool = _idle(False, "eval_strategy asks for evaluations")
    do_predict: bool = _refused(False, "leave it out: nothing is predicted here")
    # how much is trained
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = _idle(8, "an evaluation has the training's micro-batches, and the same numbers")
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    auto_find_batch_size: bool = _refused(
        False, f"leave it out: {BESIDE_A_RECIPE} --train.max_tokens_per_micro_batch, which bounds the memory"
    )
    # optimizer
    optim: str = "adamw_torch"
    optim_args: str | None = _refused(None, "leave it out: only AdamW and Muon are here")
    optim_target_modules: list[str] | str | None = _refused(None, "leave it out: GaLore and APOLLO are not here")
    learning_rate: float = _setting(2e-5, "adam.lr")
    weight_decay: float = _setting(0.0, "adam.weight_decay", "embeddings do not decay here")
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = _setting(1e-8, "adam.eps")
    max_grad_norm: float = _setting(1.0, "max_norm")
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] | str | None = None
    warmup_ratio: float | None = 0.0
    warmup_steps: float | None = 0
    label_smoothing_factor: float = _refused(0.0, "leave it out: the loss is -log p of each target")
    neftune_noise_alpha: float | None = _refused(None, "leave it out: embeddings get no noise here")
    average_tokens_across_devices: bool = _idle(True, "a step's loss is always the mean over all ranks' targets")
    # precision, speed and memory
    bf16: bool | None = None
    fp16: bool = False
    bf16_full_eval: bool = _idle(False, "an evaluation computes as the training does")
    fp16_full_eval: bool = _idle(False, "an evaluation computes as the training does")
    tf32: bool | None = _idle(None, "torch's own setting holds")
    gradient_checkpointing: bool | None = True
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = None
    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None
    activation_offloading: bool = _refused(False, f"use gradient_checkpointing, or {_ZERO_3}")
    torch_compile: bool = _setting(False, "model.compile_layers")
    torch_compile_backend: str | None = _idle(None, "the layers are compiled by torch's own back end")
    torch_compile_mode: str | None = _idle(None, "the layers are compiled in torch's own mode")
    use_liger_kernel: bool = _setting(False, "ds.use_liger_kernel")
    liger_kernel_config: dict[str, Any] | None = _refused(None, "leave it out: Liger's own choice holds")
    use_cache: bool = _idle(False, "training keeps no cache")
    torch_empty_cache_steps: int | None = _idle(None, _NO_NUMBER)
    deepspeed: dict[str, Any] | str | None = None
    fsdp: str | None = _refused(None, f"leave it out: {_ZERO_3} splits the weights")
    fsdp_config: dict[str, Any] | str | None = _refused(None, f"leave it out: {_ZERO_3} splits the weights")
    accelerator_config: dict[str, Any] | str | None = _idle(
        None, f"{_LAUNCH}; its split_batches and gradient_accumulation_kwargs are refused"
    )
    parallelism_config: Any = _refused(None, f"leave it out: {_ZERO_3} splits the weights")
    use_cpu: bool = _idle(False, "the CPU is used where there is no GPU; CUDA_VISIBLE_DEVICES= hides the GPUs")
    ddp_timeout: int = 1800
    ddp_backend: str | None = _idle(None, _LAUNCH)
    ddp_find_unused_parameters: bool | None = _idle(None, _LAUNCH)
    ddp_bucket_cap_mb: int | None = _idle(None, _LAUNCH)
    ddp_broadcast_buffers: bool | None = _idle(None, _LAUNCH)
    ddp_static_graph: bool | None = _idle(None, _LAUNCH)
    local_rank: int = _idle(-1, "the launcher says it")
    # numbers that are shown
    logging_dir: str | None = None
    logging_strategy: str = "steps"
    logging_steps: float = 10
    logging_first_step: bool = _idle(False, "metrics.jsonl has every step")
    logging_nan_inf_filter: bool = _idle(True, "a step that is not finite is held back, and told")
    log_level: str = _idle("passive", "the script's own loggers")
    log_level_replica: str = _idle("warning", "the script's own loggers")
    log_on_each_node: bool = _idle(True, "rank 0 logs")
    disable_tqdm: bool | None = _idle(None, _NO_NUMBER)
    report_to: list[str] | str | None = None
    run_name: str | None = _setting(None, "logger.wandb.name")
    project: str = "huggingface"
    trackio_space_id: str | None = _idle("trackio", "set TRACKIO_SPACE_ID in the environment, which Trackio reads")
    trackio_bucket_id: str | None = _idle(None, "set TRACKIO_BUCKET_ID in the environment, which Trackio reads")
    trackio_static_space_id: str | None = _idle(None, "no static page is made of a run")
    include_num_input_tokens_seen: str | bool = _idle(False, "metrics.jsonl always has num_tokens")
    include_for_metrics: list[str] | None = _idle(None, "compute_metrics, which would be given it, is not here")
    include_tokens_per_second: bool = _idle(False, "metrics.jsonl always has tokens_per_second")
    skip_memory_metrics: bool = _idle(True, "metrics.jsonl always has the peak of the memory")
    # evaluation
    eval_strategy: str = "no"
    evaluation_strategy: str | None = None
    eval_steps: float | None = None
    eval_delay: float = _refused(0, "leave it out: evaluations begin with the first that is due")
    eval_on_start: bool = _refused(False, "leave it out, or call trainer.evaluate() before trainer.train()")
    eval_accumulation_steps: int | None = _idle(None, "an evaluation adds up numbers, not outputs")
    prediction_loss_only: bool = _idle(False, "an evaluation adds up numbers, not outputs")
    batch_eval_metrics: bool = _idle(False, "an evaluation adds up numbers, not outputs")
    eval_do_concat_batches: bool = _idle(True, "an evaluation adds up numbers, not outputs")
    eval_use_gather_object: bool = _idle(False, "an evaluation adds up numbers, not outputs")
    debug: list[str] | str | None = _refused("", "leave it out: a step that is not finite is held back, and told")
    # saving
    save_strategy: str = "steps"
    save_steps: float = 500
    save_total_limit: int | None = None
    save_only_model: bool = False
    save_safetensors: bool = _idle(True, "weights are always safetensors")
    save_on_each_node: bool = _idle(False, "the folder is shared by all ranks")
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    restore_callback_states_from_checkpoint: bool = _refused(False, "leave it out: callbacks begin anew")
    resume_from_checkpoint: str | None = None
    enable_jit_checkpoint: bool = _idle(False, "SIGTERM ends a run with a save in any case")
    ignore_data_skip: bool = _refused(False, "leave it out: a run goes on with the samples that it has not seen")
    # data
    seed: int = _setting(42, "train.seed", "the order of samples is another one than there")
    data_seed: int | None = _refused(None, "leave it out: seed draws the order too")
    full_determinism: bool = _setting(False, "train.full_determinism_enable")
    dataloader_drop_last: bool = _idle(False, "the last samples of an epoch are trained, not dropped")
    dataloader_num_workers: int = _idle(0, _ROWS_READ)
    dataloader_pin_memory: bool = _idle(True, _ROWS_READ)
    dataloader_persistent_workers: bool = _idle(False, _ROWS_READ)
    dataloader_prefetch_factor: int | None = _idle(None, _ROWS_READ)
    dataloader_in_order: bool = _idle(True, _ROWS_READ)
    dataloader_multiprocessing_context: str | None = _idle(None, _ROWS_READ)
    remove_unused_columns: bool = _idle(True, "columns are found by name")
    label_names: list[str] | None = _idle(None, "columns are found by name")
    train_sampling_strategy: str = _refused("random", "leave it out: the seed shuffles the samples")
    group_by_length: bool = _idle(False, "micro-batches are balanced by length within a step")
    length_column_name: str = _idle("length", "lengths are counted")
    # the hub
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: str = _idle("every_save", _PUSHES)
    hub_token: str | None = _secret(None, "set HF_TOKEN in the environment")
    hub_private_repo: bool | None = _setting(None, "hub.private")
    hub_always_push: bool = _idle(False, _PUSHES)
    hub_revision: str | None = _setting(None, "hub.revision")


@dataclasses.dataclass
class SftNames(TrainingNames):
    """`trl.SFTConfig`."""

    model_init_kwargs: dict[str, Any] | str | None = _refused(None, "give dtype, attn_implementation … by themselves")
    trust_remote_code: bool = _setting(False, "model.trust_remote_code")
    router_aux_loss_coef: float | None = None
    chat_template_path: str | None = None
    dataset_text_field: str = "text"
    dataset_kwargs: dict[str, Any] | None = _refused(None, "leave it out: rows that are tokenized are known by columns")
    dataset_num_proc: int | None = _setting(None, "data.num_processors")
    dataset_batch_size: int | None = _idle(1000, _ROWS_READ)
    shuffle_dataset: bool = _idle(False, "every epoch is shuffled by the seed")
    eos_token: str | None = _setting(None, "data.eos_token")
    pad_token: str | None = _idle(None, "padding is known by length; a script's tokenizer takes it")
    max_length: int | None = 1024
    max_seq_length: int | None = None
    packing: bool = False
    packing_strategy: str = _idle("bfd", "no sample is cut or joined by packing here")
    padding_free: bool = False
    eval_packing: bool | None = _idle(None, "an evaluation has the training's layout, and the same numbers")
    pad_to_multiple_of: int | str | None = _idle(None, _NO_NUMBER)
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    loss_type: str = "nll"
    truncation_mode: str = _refused("keep_start", "leave it out: a sample is cut at its end")
    use_liger: bool = _setting(False, "ds.use_liger_kernel")


@dataclasses.dataclass
class ModelNames:
    """`trl.ModelConfig`."""

    model_name_or_path: str | None = _setting(None, "model.model_name_or_path")
    model_revision: str = _refused("main", "fetch that revision, and give its folder as model_name_or_path")
    dtype: str | None = None
    torch_dtype: str | None = None
    attn_implementation: str | None = _setting(None, "ds.attn_implementation")
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | None = None
    lora_target_parameters: list[str] | None = None
    lora_modules_to_save: list[str] | None = None
    lora_task_type: str = _idle("CAUSAL_LM", "the model is a causal language model")
    use_rslora: bool = False
    use_dora: bool = False
    load_in_8bit: bool = _refused(False, "use load_in_4bit, or neither")
    load_in_4bit: bool = _setting(False, "ds.load_in_4bit")
    bnb_4bit_quant_type: str = _refused("nf4", "leave it out: nf4 is used")
    use_bnb_nested_quant: bool = _idle(False, "4 bits are always quantized twice")
    bnb_4bit_quant_storage: str | None = _idle(None, _NO_NUMBER)


@dataclasses.dataclass
class ScriptArgumentNames:
    """`trl.ScriptArguments`, with what `trl.DatasetMixtureConfig` and Open-R1 add."""

    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    dataset_streaming: bool = _refused(False, "leave it out: rows are prepared once, and read from disk by page")
    gradient_checkpointing_use_reentrant: bool = _setting(False, "model.gradient_checkpointing_reentrant")
    ignore_bias_buffers: bool = _idle(False, _LAUNCH)


@dataclasses.dataclass
class OpenR1Names:
    """What Open-R1's recipes have beside TRL's names."""

    dataset_mixture: dict[str, Any] | None = None
    datasets: list[Any] | None = None
    chat_template: str | None = _setting(None, "data.tokenizer_chat_template")
    system_prompt: str | None = _idle(None, "Open-R1's evaluation jobs alone read it")
    benchmarks: list[str] | None = _idle(None, "no benchmark job is started")
    callbacks: list[str] | None = _idle(None, "Open-R1's callbacks push to the hub; train.callbacks takes your own")
    hub_model_revision: str | None = _setting(None, "hub.revision")
    overwrite_hub_revision: bool = _idle(False, "a push adds a commit to the revision")
    push_to_hub_revision: bool = _idle(False, "push_to_hub pushes to the revision")
    wandb_entity: str | None = _setting(None, "logger.wandb.org")
    wandb_project: str | None = _setting(None, "logger.wandb.project")
    wandb_run_group: str | None = _setting(None, "logger.wandb.group")
    wandb_log_unique_prompts: bool = _idle(False, "it is of GRPO")


@dataclasses.dataclass
class VerifiersNames:
    """What `[sft]` of verifiers' `vf-sft` has beside TRL's names; defaults of its own stand in `VERIFIERS_DEFAULTS`."""

    batch_size: int | None = None
    micro_batch_size: int | None = None
    max_seq_len: int | None = None
    use_lora: bool | None = None
    lora_rank: int | None = None
    lora_use_rslora: bool = False
    lora_config: Any = _refused(None, "give lora_rank, lora_alpha and lora_target_modules")
    dataset_split: str | None = None
    use_vllm: bool = _refused(False, f"leave it out; {_ANSWERS}")
    vllm_sample_every_n_steps: int = _idle(100, f"{_ANSWERS}, and --eval.prompts_steps")
    vllm_num_samples: int = _idle(5, f"{_ANSWERS}, each of which is answered")
    vllm_server_host: str = _idle("0.0.0.0", f"no server is asked; {_ANSWERS}")
    vllm_server_port: int = _idle(8000, f"no server is asked; {_ANSWERS}")


VERIFIERS_DEFAULTS: dict[str, Any] = {
    "batch_size": 512,
    "micro_batch_size": 8,
    "max_seq_len": 2048,
    "use_lora": True,
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "up_proj"],
    "max_steps": 500,
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "bf16": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_steps": 50,
}


def fields_of(*groups: type) -> dict[str, dataclasses.Field[Any]]:
    """All names of these dataclasses."""
    return {field.name: field for group in groups for field in dataclasses.fields(group)}


RECIPE_NAMES = fields_of(SftNames, ModelNames, ScriptArgumentNames, OpenR1Names, VerifiersNames)
TAKE_NONE = frozenset(  # read now: transformers' HfArgumentParser takes None off the types of the fields that it parses
    name for name, one in RECIPE_NAMES.items() if "None" in str(one.type) or isinstance(one.default, bool | None)
)


def is_secret(name: str) -> bool:
    """Whether the value of a name may stand in no log and no message."""
    return not RECIPE_NAMES[name].repr


def rule_of(field: dataclasses.Field[Any]) -> Rule | None:
    """What becomes of a name by itself; None for a part of something."""
    rule = field.metadata.get("help")
    return rule if isinstance(rule, Rule) else None
