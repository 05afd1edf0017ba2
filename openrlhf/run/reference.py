"""The reference of a run of train_dpo: which model it is, how it is checked, loaded, and computed once."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from openrlhf.atomic_file import replace_file
from openrlhf.config import DPOConfig, LoraConfig
from openrlhf.datasets.cache import open_cache_dir
from openrlhf.datasets.fingerprint import KNOWN_HASHES, hash_of, known_hashes
from openrlhf.datasets.sources.tables import FileTable
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.loading import load_config
from openrlhf.models.quantized import check_quantization
from openrlhf.models.weights_check import check_weight_files
from openrlhf.objectives.pair_losses import needs_reference
from openrlhf.objectives.preference import Reference
from openrlhf.objectives.reference import BaseUnderAdapters, ComputedReference, FrozenReference, base_is_no_reference
from openrlhf.run.builders import build_actor
from openrlhf.strategy import DeepspeedStrategy

_WEIGHTS_AND_CODE = ("*.safetensors", "*.bin", "config.json", "*.py")


def reference_name(config: DPOConfig) -> str | None:
    """Folder or hub name of its model; None where no loss has a reference."""
    if not needs_reference(config.model.losses()):
        return None
    return config.ref.model_name_or_path or config.model.model_name_or_path


def reference_of(config: DPOConfig) -> Reference | None:
    """The kind that the settings ask for."""
    if reference_name(config) is None:
        return None
    if config.ref.precompute:
        return ComputedReference()
    if config.ds.lora.is_used and config.ref.model_name_or_path is None:
        return BaseUnderAdapters()
    return FrozenReference()


def check_reference(config: DPOConfig) -> None:
    """Raises UserError where it is no model, or has another vocabulary than the one that is trained."""
    name, trained = reference_name(config), config.model.model_name_or_path
    adapter = config.ds.lora.adapter_name_or_path
    if name is not None and adapter is not None and config.ref.model_name_or_path is None:
        raise base_is_no_reference(f"--ds.lora.adapter_name_or_path {adapter}", "--ref.model_name_or_path")
    if name is None or name == trained:
        return
    check_weight_files(name)
    trust = config.model.trust_remote_code
    if config.ds.load_in_4bit:
        check_quantization(load_config(name, trust), name, load_in_4bit=True)
    here, there = (load_config(one, trust).get_text_config().vocab_size for one in (trained, name))
    if here != there:
        _refuse(name, f"it has {there:,} tokens, the model {here:,}")
    try:
        ids_there = get_tokenizer(name, trust_remote_code=trust).get_vocab()
    except UserError:  # it comes without a tokenizer
        return
    ids_here = get_tokenizer(trained, trust_remote_code=trust).get_vocab()
    unlike = [token for token in sorted({*ids_here, *ids_there}) if ids_here.get(token) != ids_there.get(token)]
    if unlike:
        token = unlike[0]
        _refuse(name, f"{token!r} is its token {ids_there.get(token)}, and the model's {ids_here.get(token)}")


def _refuse(name: str, finding: str) -> None:
    raise UserError(
        f"--ref.model_name_or_path {name} has another vocabulary than --model.model_name_or_path: {finding}. Their "
        "log-probs cannot be compared: give a reference with the model's vocabulary."
    )


def load_reference(config: DPOConfig, strategy: DeepspeedStrategy) -> Actor:
    """The frozen model, ready to compute; all ranks call."""
    name = reference_name(config)
    assert name is not None, "some loss has a reference"
    model = replace(config.model, model_name_or_path=name, gradient_checkpointing_enable=False, compile_layers=False)
    as_reference = replace(config, model=model, ds=replace(config.ds, lora=LoraConfig()))
    actor = build_actor(as_reference, strategy.get_ds_eval_config(offload=config.ref.offload))
    return strategy.prepare(actor)


def reference_file(config: DPOConfig, data_fingerprint: str) -> Path:
    """Where the log-probs of these data are kept: by weights, code, tokens and the settings that could change them."""
    name, folder = reference_name(config), open_cache_dir(config.data.cache_dir)
    assert name is not None, "some loss has a reference"
    ds = config.ds
    settings = [ds.param_dtype, ds.load_in_4bit, ds.attn_implementation, ds.use_liger_kernel]
    return folder / "references" / f"{hash_of([_weights_hash(name, folder), data_fingerprint, settings])}.f64"


def _weights_hash(name: str, cache_dir: Path) -> Any:
    """Of every byte of weights, configuration and own code; a name on the hub stands for itself and its revision."""
    if not Path(name).is_dir():
        cached = try_to_load_from_cache(name, "config.json")
        return [name, Path(cached).parent.name if isinstance(cached, str) else None]
    known = known_hashes(cache_dir)
    files = sorted(file for pattern in _WEIGHTS_AND_CODE for file in Path(name).glob(pattern))
    hashes = [FileTable(str(file)).content_hash(known) for file in files]
    with contextlib.suppress(OSError):  # it only saves time
        replace_file(cache_dir / KNOWN_HASHES, json.dumps(known, indent=0))
    return hashes
