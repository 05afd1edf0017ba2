"""The exported model: opened by transformers it is the trained one; nothing half-written looks like it."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from openrlhf.checkpoint import fault_points
from openrlhf.checkpoint.export import _put_in_place, export_model, is_exported
from openrlhf.checkpoint.manifest import write_manifest
from openrlhf.checkpoint.model_settings import end_token_ids, note_end_token
from openrlhf.checkpoint.rehearsal import try_export
from openrlhf.errors import UserError
from tests.helpers.fault_points import EXPORT_POINTS
from tests.helpers.file_limit import no_file_beyond
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, tiny_tokenizer
from tests.zoo.shrink import small_model_named


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6)).logits


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral", "qwen3_moe", "gpt2", "gemma2"])
def test_opened_again_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    export_model(model, tiny_tokenizer(), tmp_path)
    attention = model.config._attn_implementation  # of its own choice Gemma 2 opens otherwise before transformers 5.21
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention)
    assert torch.equal(_logits(again), _logits(model))


@pytest.mark.parametrize("kind", ["qwen3", "mixtral"])
def test_files_are_those_that_transformers_itself_would_write(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, dtype=torch.bfloat16)
    export_model(model, None, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = _tensors(tmp_path / "ours"), _tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    export_model(tiny_model("qwen3"), None, tmp_path)
    assert "lm_head.weight" not in _tensors(tmp_path)


def test_shards_stay_below_their_limit_and_open(tmp_path: Path) -> None:
    model = tiny_model("llama")
    export_model(model, None, tmp_path, max_shard_bytes=200_000)
    shards = list(tmp_path.glob("model-*-of-*.safetensors"))
    largest_tensor_bytes = max(p.numel() * 4 for p in model.parameters())
    assert len(shards) > 1
    assert all(path.stat().st_size < max(200_000, largest_tensor_bytes) + 20_000 for path in shards)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(tmp_path)), _logits(model))


def test_configuration_uses_the_cache_and_says_the_dtype(tmp_path: Path) -> None:
    model = tiny_model("qwen3", dtype=torch.bfloat16)
    model.config.use_cache = False
    export_model(model, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["use_cache"], config["dtype"]) == (True, "bfloat16")
    assert model.config.use_cache is False, "the model in training was changed"


def test_generation_stops_at_the_end_token_and_at_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    export_model(tiny_model("qwen3"), tokenizer, tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(settings["eos_token_id"]) == ["<|endoftext|>", "<|im_end|>"]
    assert settings["pad_token_id"] == tokenizer.pad_token_id


@pytest.mark.parametrize("where", ["generation_config", "config"])
def test_generation_stops_at_the_end_tokens_of_the_base_too(where: str, tmp_path: Path) -> None:
    """Such as <|call|> of gpt-oss. <|im_start|> opens an answer here; a word, and numbers outside, are no tokens."""
    tokenizer = tiny_tokenizer(chat_template=CHATML, extra_special_tokens=("<|call|>",))
    call, opening, word = tokenizer.convert_tokens_to_ids(["<|call|>", "<|im_start|>", "a"])
    model = tiny_model("llama")
    getattr(model, where).eos_token_id = [call, opening, word, 10_000, -1]
    export_model(model, tokenizer, tmp_path)
    ends = GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|im_end|>", "<|call|>"]


def test_generation_stops_at_what_the_data_end_answers_with() -> None:
    """Rows that came tokenized, of a template that the tokenizer does not have."""
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", eos_token_id=None)
    end, word = tokenizer.convert_tokens_to_ids(["<|im_end|>", "a"])
    for id_ in (None, word, end):
        note_end_token(model, tokenizer, id_)
    assert end_token_ids(tokenizer, model) == [tokenizer.eos_token_id, end]
    assert model.generation_config.eos_token_id == [end]


@pytest.mark.parametrize(("of_base", "kept"), [(None, None), (7, 7), (0, None)])
def test_an_end_token_that_pads_stays_out_of_the_config(of_base: int | None, kept: int | None, tmp_path: Path) -> None:
    """By it torch would leave the embedding of the end token as it is in every later training."""
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    export_model(tiny_model("llama", pad_token_id=of_base), tokenizer, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == 0
    assert (model.config.pad_token_id, model.get_input_embeddings().padding_idx) == (kept, kept)
    assert model.generation_config.pad_token_id == AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 0
    model(torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[0].any()


def test_a_pad_token_without_an_embedding_is_left_out_and_told(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), pad_token_id=None)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    assert try_export(model, tokenizer, tmp_path) == [
        "the model has no embedding for the pad token, <new pad>: the exported configuration leaves its id out."
    ]
    export_model(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.pad_token_id is again.generation_config.pad_token_id is None
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<new pad>"


@pytest.mark.parametrize("model_type", ["roberta", "xglm"])
def test_a_pad_token_that_positions_depend_on_stays_in_the_config(model_type: str, tmp_path: Path) -> None:
    model, tokenizer = small_model_named(model_type).eval(), tiny_tokenizer(vocab_size=300)
    tokenizer.pad_token = "<|im_end|>"
    model.config.pad_token_id = tokenizer.pad_token_id  # as OpenRLHF's get_tokenizer sets it
    export_model(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.config.pad_token_id, again.generation_config.pad_token_id) == (1, tokenizer.pad_token_id)
    assert torch.equal(_logits(again), _logits(model))


def test_one_end_token_is_a_number() -> None:
    tokenizer = tiny_tokenizer()
    assert end_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_tokenizer_opens_with_its_template(tmp_path: Path) -> None:
    export_model(tiny_model("qwen3"), tiny_tokenizer(chat_template=CHATML), tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML


def test_other_files_stay_and_old_weights_go(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    export_model(tiny_model("llama"), None, tmp_path, max_shard_bytes=200_000)
    export_model(tiny_model("qwen3"), None, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert not (tmp_path / ".writing-export").exists()


def test_an_adapter_is_saved_alone_and_opens_on_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = tiny_model("llama")
    export_model(base, None, tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=4, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    export_model(model, tiny_tokenizer(), tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(_logits(again.eval()), _logits(model.eval()))
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")), _logits(model))
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))


def test_a_weight_without_elements_is_an_error(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.norm.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(UserError, match=r"model\.norm\.weight has no elements"):
        export_model(model, None, tmp_path)
    assert not is_exported(tmp_path)


def test_what_comes_back_different_from_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openrlhf.checkpoint.tensor_file as tensor_file

    def write_and_flip(path: Path, *args: object, **kwargs: object) -> object:
        record = write_tensors(path, *args, **kwargs)  # type: ignore[arg-type]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return record

    write_tensors = tensor_file.write_tensors
    monkeypatch.setattr(tensor_file, "write_tensors", write_and_flip)
    with pytest.raises(UserError, match="does not have the content that was written"):
        export_model(tiny_model("llama"), None, tmp_path)
    assert not is_exported(tmp_path)


def test_a_full_disk_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny_model("llama", seed=1)
    export_model(old, None, tmp_path)
    monkeypatch.setenv(fault_points.ENVIRONMENT_VARIABLE, "export.half_of_shard_written:1:disk_full")
    monkeypatch.setattr(fault_points, "_times_passed", fault_points.Counter())
    with pytest.raises(UserError, match="No space left"):
        export_model(tiny_model("llama", seed=2), None, tmp_path)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(tmp_path)), _logits(old))


def test_a_limit_of_file_sizes_is_found_before_the_training_and_a_write_names_its_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with no_file_beyond(20_000):
        with pytest.raises(UserError, match=r"bytes, and the limit of this process is 20,000.*Nothing is trained"):
            try_export(model, None, tmp_path)
        with pytest.raises(UserError, match="--ckpt.export_shard_size"):
            try_export(model, None, tmp_path, max_shard_bytes=20_001)
        try_export(model, None, tmp_path, max_shard_bytes=20_000)
        adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=1, target_modules=["q_proj"]))
        try_export(adapted, None, tmp_path)
        with pytest.raises(UserError, match="may take"):
            try_export(adapted, None, tmp_path, is_merged=True)
        with pytest.raises(UserError, match=r"File too large: '.*part-00000.safetensors'"):
            export_model(model, None, tmp_path)


@pytest.mark.parametrize("point", EXPORT_POINTS)
def test_killed_at_any_point_the_folder_holds_a_whole_model_or_none(point: str, tmp_path: Path) -> None:
    old, new = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    export_model(old, None, tmp_path)
    child = os.fork()
    if child == 0:
        os.environ[fault_points.ENVIRONMENT_VARIABLE] = point
        fault_points._times_passed.clear()
        export_model(new, None, tmp_path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{point} was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL
    if is_exported(tmp_path):
        logits = _logits(AutoModelForCausalLM.from_pretrained(tmp_path))
        assert torch.equal(logits, _logits(old)) or torch.equal(logits, _logits(new))
    export_model(new, None, tmp_path)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(tmp_path)), _logits(new))


def test_a_model_of_another_run_is_moved_into_one_folder_whatever_ends_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("chat_template.jinja", "config.json", "model.safetensors", "theirs.json", "vocabulary.json")

    def model(folder: Path, run: str, names: tuple[str, ...] = files) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text(run)
        write_manifest(folder, None, {"run_id": run})

    for most in range(2 * len(files)):
        folder, staging = tmp_path / str(most), tmp_path / str(most) / ".writing-export"
        model(folder, "A")
        model(staging, "B", files[:3])
        with monkeypatch.context() as short, suppress(OSError):
            short.setattr(os, "replace", replace_at_most(most))
            _put_in_place(staging, folder)
        shutil.rmtree(staging, ignore_errors=True)
        model(staging, "B", files[:3])
        _put_in_place(staging, folder)
        moved = {path.relative_to(folder).as_posix() for path in folder.glob(".*/*")}
        moved |= {path.relative_to(folder).as_posix() for path in folder.glob("earlier_run_*/*")}
        assert moved == {f"earlier_run_1/{name}" for name in (*files, "manifest.json")}, f"ended at move {most}"
        assert {(folder / name).read_text() for name in files[:3]} == {"B"}


def replace_at_most(most: int) -> Callable[..., None]:
    replace, left = os.replace, [most]

    def limited(*paths: Path) -> None:
        if not left[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left[0] -= 1
        replace(*paths)

    return limited


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in list(file.keys())})
    return tensors
