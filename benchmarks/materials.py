"""Models and rows of the benchmarks, made once in a folder.

A folder `models/<name>` opens in transformers: a Qwen3 or Llama shape with random float32 weights and a byte-level
tokenizer of up to 16,384 tokens, trained on GSM8K. A file `rows/<name>.jsonl` has a `.json` beside it that
says how many tokens and targets its samples have, as both contestants must count them.
"""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
EOS, PAD = "<|endoftext|>", "<|pad|>"
TOKENIZER_SIZE = 16_384
_NOT_OF_CONFIG = ("model_type", "dtype", "seed", "has_values")
NOT_A_TARGET = -100


@dataclass(frozen=True)
class ModelShape:
    """A decoder of transformers, from its sizes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    model_type: str = "qwen3"
    tie_word_embeddings: bool = True
    dtype: str = "float32"
    seed: int = 0
    has_values: bool = False  # a reward model: a head of one value in place of the vocabulary

    @property
    def layer_matrix_parameters(self) -> int:
        """Weights of all matrix products of the layers; embedding and head not among them."""
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.layer_matrices)

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each matrix of a layer."""
        hidden, mlp, width = self.hidden_size, self.intermediate_size, self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return [(hidden, width), (hidden, keys), (hidden, keys), (width, hidden), *[(hidden, mlp)] * 2, (mlp, hidden)]

    @property
    def parameters_behind_attention(self) -> int:
        """Of one layer: the attention's output projection and the MLP, which treat each token by itself."""
        width = self.num_attention_heads * self.head_dim
        return self.hidden_size * (width + 3 * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size


MODELS = {
    "tiny": ModelShape(1_024, 64, 128, 2, 4, 2, 16),
    "tiny_llama": ModelShape(1_024, 64, 128, 4, 4, 2, 16, "llama", False),
    "small": ModelShape(16_384, 384, 1_024, 8, 6, 2, 64),  # 18.9 million parameters
    "large_vocabulary": ModelShape(151_936, 512, 1_536, 4, 8, 4, 64),
    "qwen3_0.6b": ModelShape(151_936, 1_024, 3_072, 28, 16, 8, 128, dtype="bfloat16"),
    "llama3_8b": ModelShape(128_256, 4_096, 14_336, 32, 32, 8, 128, "llama", False, dtype="bfloat16"),
}

_FORMS: dict[str, dict[str, Any]] = {"reference": {"seed": 1}, "reward": {"has_values": True}}


def shape_of(name: str) -> ModelShape:
    """One of MODELS. "<name>_16_layers" is that model with 16 layers, "<name>_reference" one of other weights,
    "<name>_reward" one that gives rewards."""
    base, _, form = name.rpartition("_")
    if match := re.fullmatch(r"(.+)_(\d+)_layers", name):
        return replace(MODELS[match[1]], num_hidden_layers=int(match[2]))
    if base in MODELS and form in _FORMS:
        return replace(MODELS[base], **_FORMS[form])
    return MODELS[name]


@dataclass(frozen=True)
class Material:
    """What a case trains.

    kind: text (prompt and completion, one GSM8K row each), changed_text (GSM8K repeated, each repetition with words of
        its own), fixed_length (rows of `length_tokens` ids), uneven (log-normal lengths, 16 to `length_tokens`), pairs
        (a GSM8K question, its answer, another question's answer), long_pairs (a prompt of about `length_tokens`, and
        two answers of a tenth of that).
    """

    kind: str
    num_rows: int
    length_tokens: int = 0
    tokenizer_of: str = "small"

    @property
    def name(self) -> str:
        return "_".join(str(part) for part in (self.kind, self.num_rows, self.length_tokens or "", self.tokenizer_of))


@dataclass(frozen=True)
class RowFacts:
    """A rows file and what is in it, counted by `tokenizer_of`."""

    path: Path
    num_rows: int
    num_tokens: int
    num_target_tokens: int  # tokens that the loss counts: a sample's first token never is one
    sum_of_squares: int  # of the samples' lengths in tokens: what causal attention costs
    longest_tokens: int
    source: str


class Materials:
    """The materials below `root`; what is missing is made by a process of its own, so that this one stays small."""

    def __init__(self, root: Path):
        self.root = root

    def make(self, models: list[str], materials: list[Material], timeout_seconds: float | None = None) -> None:
        """All that is missing, in one process. Raises subprocess.TimeoutExpired where that takes longer."""
        models = [name for name in models if not self._is_made(name)]
        materials = [material for material in materials if not self._facts_file(material).is_file()]
        needed = {material.tokenizer_of for material in materials} - set(models)
        models = [*models, *(name for name in sorted(needed) if not self._is_made(name))]
        if models or materials:
            wish = json.dumps({"models": models, "materials": [vars(material) for material in materials]})
            words = [sys.executable, "-m", "benchmarks.materials", str(self.root), wish]
            subprocess.run(words, check=True, cwd=Path(__file__).resolve().parents[1], timeout=timeout_seconds)

    def model(self, name: str) -> Path:
        self.make([name], [])
        return self.root / "models" / name

    def rows(self, material: Material) -> RowFacts:
        self.make([], [material])
        facts = self._facts_file(material)
        values = json.loads(facts.read_text(encoding="utf-8"))
        return RowFacts(path=facts.with_suffix(".jsonl"), **values)

    def _is_made(self, model: str) -> bool:
        return (self.root / "models" / model / "complete").is_file()

    def _facts_file(self, material: Material) -> Path:
        return self.root / "rows" / f"{material.name}.json"


# --- made in a process of their own ----------------------------------------------------------------------------------


def main(root: Path, wish: dict) -> None:
    for name in wish["models"]:
        make_model(root, name, shape_of(name))
    for values in wish["materials"]:
        make_rows(root, Material(**values))


def gsm8k_rows() -> tuple[list[tuple[str, str]], str]:
    """(question, answer) of each row, and where they come from."""
    if GSM8K.is_file():
        with GSM8K.open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        return [(row["question"], row["answer"]) for row in found], "GSM8K, train"
    print(f"{GSM8K.name} of GSM8K is not there: sums in words of like lengths take its place.", flush=True)
    return [_sum_in_words(random.Random(seed)) for seed in range(7_473)], "sums in words, as long as GSM8K's rows"


def _sum_in_words(rng: random.Random) -> tuple[str, str]:
    """A question of about 235 characters and an answer of about 290, as GSM8K's."""
    names = ("Anna", "Bruno", "Clara", "David", "Elif", "Farid", "Grace", "Hugo")
    things = ("apples", "stamps", "books", "marbles", "tickets", "coins")
    question, answer, total = [], [], 0
    for _ in range(rng.randint(3, 7)):
        name, thing, count = rng.choice(names), rng.choice(things), rng.randint(2, 99)
        question.append(f"{name} brings {count} {thing} to the market.")
        answer.append(f"With {name}'s {thing} there are {total} + {count} = <<{total}+{count}={total + count}>>.")
        total += count
    return f"{' '.join(question)} How many things are there in all?", "\n".join([*answer, f"#### {total}"])


def make_model(root: Path, name: str, shape: ModelShape) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = root / "models" / name
    fields = {key: value for key, value in vars(shape).items() if key not in _NOT_OF_CONFIG}
    tokenizer = _train_tokenizer(min(TOKENIZER_SIZE, shape.vocab_size))
    config = AutoConfig.for_model(
        shape.model_type,
        **fields,
        max_position_embeddings=1 << 20,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(shape.seed)
    if shape.has_values:
        config.num_labels = 1
    model_class = AutoModelForSequenceClassification if shape.has_values else AutoModelForCausalLM
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = model_class.from_config(config, dtype=getattr(torch, shape.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete").touch()
    print(f"{folder.name}: {model.num_parameters() / 1e6:.1f} million parameters", flush=True)


@functools.cache
def _train_tokenizer(vocab_size: int):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in gsm8k_rows()[0] for text in row), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def make_rows(root: Path, material: Material) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "models" / material.tokenizer_of)
    pairs, source = gsm8k_rows()
    path = root / "rows" / f"{material.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths, targets = [], []
    with path.open("w", encoding="utf-8") as file:
        for row, lengths_of_row, num_targets in _MAKERS[material.kind](material, pairs, tokenizer):
            file.write(json.dumps(row) + "\n")
            lengths += lengths_of_row
            targets.append(num_targets)
    facts = {
        "num_rows": material.num_rows,
        "num_tokens": sum(lengths),
        "num_target_tokens": sum(targets),
        "sum_of_squares": sum(length * length for length in lengths),
        "longest_tokens": max(lengths),
        "source": source,
    }
    path.with_suffix(".json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"{path.name}: {facts}", flush=True)


Made = Iterator[tuple[dict, list[int], int]]  # row, tokens of each of its sequences, its target tokens


def _text(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    return _counted((pairs[number % len(pairs)] for number in range(material.num_rows)), tokenizer)


def _changed_text(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    return _counted((_change(*pairs[n % len(pairs)], n // len(pairs)) for n in range(material.num_rows)), tokenizer)


def _change(question: str, answer: str, repetition: int) -> tuple[str, str]:
    """No two repetitions are the same text: a cache of whole rows helps nobody."""
    if repetition == 0:
        return question, answer
    return f"Exercise {repetition}. {question}", answer.replace("####", f"So, in exercise {repetition}:\n####")


def _counted(pairs: Iterator[tuple[str, str]], tokenizer) -> Made:
    def flush() -> Made:
        whole = tokenizer([f"{prompt}{completion}{EOS}" for prompt, completion in waiting])["input_ids"]
        prompts = tokenizer([prompt for prompt, _ in waiting])["input_ids"]
        for (prompt, completion), ids, prompt_ids in zip(waiting, whole, prompts, strict=True):
            yield {"prompt": prompt, "completion": completion}, [len(ids)], len(ids) - len(prompt_ids)

    waiting: list[tuple[str, str]] = []
    for question, answer in pairs:
        waiting.append((f"{question}\n", answer))
        if len(waiting) == 2_000:
            yield from flush()
            waiting.clear()
    if waiting:
        yield from flush()


def _fixed_length(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    yield from _of_lengths([material.length_tokens] * material.num_rows, pairs, tokenizer)


def _uneven(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    rng = random.Random(0)
    drawn = [int(rng.lognormvariate(5.3, 1.3)) for _ in range(material.num_rows)]
    yield from _of_lengths([min(max(length, 16), material.length_tokens) for length in drawn], pairs, tokenizer)


def _of_lengths(lengths: list[int], pairs: list[tuple[str, str]], tokenizer) -> Made:
    """Samples cut from GSM8K's tokens, one question after another; answers are targets, questions are not."""
    stream = _token_stream(pairs, tokenizer)
    for length in lengths:
        piece = [next(stream) for _ in range(length)]
        ids = [token for token, _ in piece]
        labels = [token if is_target else NOT_A_TARGET for token, is_target in piece]
        labels[-1] = ids[-1]  # every sample has a target
        yield {"input_ids": ids, "labels": labels}, [length], sum(label != NOT_A_TARGET for label in labels[1:])


def _pairs(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    for number in range(material.num_rows):
        question, chosen = pairs[number % len(pairs)]
        rejected = pairs[(number + 1) % len(pairs)][1]
        yield _pair_row(f"{question}\n", chosen, rejected, tokenizer)


def _long_pairs(material: Material, pairs: list[tuple[str, str]], tokenizer) -> Made:
    """Whole words of GSM8K, one text after another, so that no token spans prompt and answer."""
    words = iter([word for texts in pairs for text in texts for word in text.split()] * 2)

    def text(num_tokens: int) -> str:
        taken: list[str] = []
        while num_tokens > 0:
            taken.append(next(words))
            num_tokens -= len(tokenizer(f" {taken[-1]}")["input_ids"])
        return " ".join(taken)

    for _ in range(material.num_rows):
        prompt, of_answer = f"{text(material.length_tokens)}\n", material.length_tokens // 10
        yield _pair_row(prompt, text(of_answer), text(of_answer), tokenizer)


def _pair_row(prompt: str, chosen: str, rejected: str, tokenizer) -> tuple[dict, list[int], int]:
    num_prompt_tokens = len(tokenizer(prompt)["input_ids"])
    lengths = [len(tokenizer(f"{prompt}{answer}{EOS}")["input_ids"]) for answer in (chosen, rejected)]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "length": max(lengths)}
    return row, lengths, sum(lengths) - 2 * num_prompt_tokens


def _token_stream(pairs: list[tuple[str, str]], tokenizer) -> Iterator[tuple[int, bool]]:
    while True:
        for question, answer in pairs:
            yield from ((token, False) for token in tokenizer(f"{question}\n")["input_ids"])
            yield from ((token, True) for token in tokenizer(f"{answer}{EOS}")["input_ids"])


_MAKERS: dict[str, Callable[..., Made]] = {
    "text": _text,
    "changed_text": _changed_text,
    "fixed_length": _fixed_length,
    "uneven": _uneven,
    "pairs": _pairs,
    "long_pairs": _long_pairs,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
