"""train_dpo and train_rm by the command line: numbers, references, resumes, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import xxhash
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from openrlhf.config import DPOConfig, parse_config
from openrlhf.datasets.pair_dataset import prepare_pair_dataset
from openrlhf.errors import UserError
from openrlhf.exit_codes import EXIT_CODE_STOPPED
from openrlhf.run.dpo_run import DPORun
from openrlhf.run.reference import reference_file
from tests.helpers.slow import slow
from tests.helpers.workbench import eval_lines, pair_flags, save_model, save_pairs, step_lines
from tests.runs.cases import (
    reference_lives_in_training,
    run,
    run_as_command,
    run_until_asked_to_leave,
    run_with_a_pair_of_nan,
    said_by_run,
)
from tests.runs.test_resume import OF_THE_PROCESS, assert_same_tensors

COMMANDS = ("train_dpo", "train_rm")
NUM_STEPS = 8  # 14 pairs, 4 a step, 2 epochs
OF_DPO = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
]
OF_RM = ["accuracy", "margin", "chosen_reward", "rejected_reward"]
TWO_RANKS = dict(ds__zero_stage=3, ds__packing_samples=True, ds__ring_attn_size=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    save_pairs(folder / "pairs.jsonl", 14)
    save_model(folder / "model")
    other = save_model(folder / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * value for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    return folder


def argv(bench: Path, out: str, **changes) -> list[str]:
    settings = dict(train__max_epochs=2, ckpt__save_steps=2, ckpt__max_num=9) | changes
    return pair_flags(bench / "model", bench / "pairs.jsonl", bench / out, **settings)


def numbers(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in OF_THE_PROCESS}


@pytest.fixture(scope="module")
def unbroken(bench, one_rank):
    """Of each command, the folder of a run on one rank, evaluated by subset at its end."""
    for command in COMMANDS:
        evaluated = dict(eval__dataset=bench / "pairs.jsonl", eval__subset_key="kind")
        one_rank.run(run, argv(bench, f"{command}-unbroken", **evaluated), command=command)
    return {command: bench / f"{command}-unbroken" for command in COMMANDS}


@pytest.mark.parametrize(("command", "names"), [("train_dpo", OF_DPO), ("train_rm", OF_RM)])
def test_records_have_the_names_of_the_contract(unbroken, command, names):
    steps, (evaluation,) = step_lines(unbroken[command]), eval_lines(unbroken[command])
    assert [line["global_step"] for line in steps] == list(range(1, NUM_STEPS + 1))
    assert steps[3]["consumed_samples"] == 14, "pairs are counted"
    assert all(name in line for line in steps for name in ["num_target_tokens", *names])
    accuracy = names[0] if command == "train_rm" else "rewards/accuracies"
    of_subsets = [f"{accuracy}/long", f"{accuracy}/short"]
    for name in ["loss", "longer_is_better_accuracy", *names, *of_subsets]:
        assert f"eval_{name}" in evaluation
    whole = sum(evaluation[f"eval_{name}"] for name in of_subsets) / 2  # 7 pairs each
    assert evaluation[f"eval_{accuracy}"] == pytest.approx(whole)
    assert (unbroken[command] / "training_curves.png").is_file()


def test_the_longer_answer_is_the_better_one_so_often(unbroken, bench):
    tokenizer = AutoTokenizer.from_pretrained(bench / "model")
    pairs = [json.loads(line) for line in (bench / "pairs.jsonl").read_text().splitlines()]
    lengths = [[len(tokenizer(pair[side]).input_ids) for side in ("chosen", "rejected")] for pair in pairs]
    share = sum(chosen > rejected for chosen, rejected in lengths) / len(lengths)
    for command in COMMANDS:
        assert eval_lines(unbroken[command])[0]["eval_longer_is_better_accuracy"] == pytest.approx(share)


def test_the_first_step_of_dpo_is_ln_2(unbroken):
    first = step_lines(unbroken["train_dpo"])[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (first["rewards/margins"], first["rewards/accuracies"]) == (0.0, 0.0)
    assert step_lines(unbroken["train_dpo"])[-1]["rewards/margins"] > 0.01


def test_what_is_exported_opens_in_transformers(unbroken):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    AutoModelForCausalLM.from_pretrained(unbroken["train_dpo"])
    reward = AutoModelForSequenceClassification.from_pretrained(unbroken["train_rm"])
    assert reward.config.num_labels == 1


def test_the_config_keeps_mean_and_deviation_of_the_rewards(unbroken, bench, one_rank):
    """Also where a killed run had trained, and exports in another process."""
    (evaluation,) = eval_lines(unbroken["train_rm"])
    expected = [evaluation[f"eval_reward_{name}"] for name in ("mean", "std")]
    found = json.loads((unbroken["train_rm"] / "config.json").read_text())
    assert [found["mean"], found["std"]] == expected
    shutil.copytree(unbroken["train_rm"], bench / "killed")
    (bench / "killed" / "config.json").unlink()
    evaluated = dict(eval__dataset=bench / "pairs.jsonl", eval__subset_key="kind", ckpt__load_enable=True)
    one_rank.run(run, argv(bench, "killed", **evaluated), command="train_rm")
    again = json.loads((bench / "killed" / "config.json").read_text())
    assert [again["mean"], again["std"]] == expected


def test_a_reward_model_that_is_trained_on_has_the_numbers_of_its_own_rewards(unbroken, bench, one_rank):
    """Those of the model before it are of other rewards; adapters hand theirs on to the merged model."""
    shutil.copytree(unbroken["train_rm"], base := bench / "trained-on", ignore=shutil.ignore_patterns("checkpoints"))
    changes = dict(model__model_name_or_path=base, train__max_steps=1)
    one_rank.run(run, argv(bench, "unmeasured", **changes), command="train_rm")
    assert not {"mean", "std"} & json.loads((bench / "unmeasured" / "config.json").read_text()).keys()
    changes |= dict(ds__lora__rank=2, ckpt__merge_lora=True, eval__dataset=bench / "pairs.jsonl")
    one_rank.run(run, argv(bench, "measured", **changes), command="train_rm")
    found = json.loads((bench / "measured" / "merged" / "config.json").read_text())
    (evaluation,) = eval_lines(bench / "measured")
    assert [found["mean"], found["std"]] == [evaluation["eval_reward_mean"], evaluation["eval_reward_std"]]


def test_an_exported_reward_model_has_the_numbers_of_its_own_rewards_or_none(bench, one_rank):
    """Along the way, at the end, and where the best is exported in the last one's place."""
    swapped = bench / "swapped.jsonl"  # the longer it trains, the worse are its evaluations
    rows = [json.loads(line) for line in (bench / "pairs.jsonl").read_text().splitlines()]
    rows = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    swapped.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ways = dict(ckpt__save_steps=1, ckpt__save_hf=True, eval__dataset=swapped, eval__steps=2)
    best = ways | dict(train__max_epochs=1, adam__lr=0.01, ckpt__export_best=True)
    one_rank.run(run, argv(bench, "best", **best), command="train_rm")
    one_rank.run(run, argv(bench, "cut", train__max_steps=3, eval__at_end=False, **ways), command="train_rm")
    steps = {line["global_step"]: line for line in eval_lines(bench / "best")}
    assert steps[2]["eval_loss"] < steps[4]["eval_loss"]

    def kept(folder: str) -> list[float | None]:
        config = json.loads((bench / folder / "config.json").read_text())
        return [config.get("mean"), config.get("std")]

    def measured(step: int) -> list[float]:
        return [steps[step]["eval_reward_mean"], steps[step]["eval_reward_std"]]

    exported = [kept(f"best/checkpoints/global_step{step}_hf") for step in range(1, 5)]
    assert exported == [[None] * 2, measured(2), [None] * 2, measured(4)]
    assert kept("best") == pytest.approx(measured(2))
    assert kept("cut") == [None] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_two_ranks_of_a_ring_train_the_same(two_ranks, bench, unbroken, command):
    two_ranks.run(run, argv(bench, f"{command}-ring", **TWO_RANKS), command=command)
    for one, other in zip(step_lines(unbroken[command]), step_lines(bench / f"{command}-ring"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5), f"loss of step {one['global_step']}"
        assert other["num_tokens"] == one["num_tokens"]


# --- resumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_was_stopped_goes_on_to_the_bit(two_ranks, bench, command, zero_stage):
    """In its layout, and in another ZeRO stage, as one micro-batch a rank makes the sums over ranks the same.

    ZeRO 0 adds up the norm of the gradients in another order, which counts where they are clipped; ZeRO 3 all sums.
    """
    layout = dict(ds__zero_stage=2, ds__packing_samples=True, max_norm=1e6)
    one, other = bench / f"{command}-whole", bench / f"{command}-stopped"
    if not one.exists():
        two_ranks.run(run, argv(bench, one.name, **layout), command=command)
    shutil.rmtree(other, ignore_errors=True)
    assert two_ranks.run(run_until_asked_to_leave, argv(bench, other.name, **layout), 3, 1, command=command) == [75, 75]
    again = layout | dict(ds__zero_stage=zero_stage, ckpt__load_enable=True)
    two_ranks.run(run, argv(bench, other.name, **again), command=command)
    for line, same in zip(step_lines(one), step_lines(other), strict=True):
        rounded = {"grad_norm": pytest.approx(line["grad_norm"], rel=1e-6)} if zero_stage == 0 else {}
        assert numbers(same) == numbers(line) | rounded
    assert_same_tensors(one / "model.safetensors", other / "model.safetensors")


@pytest.mark.parametrize(("command", "rounding"), [("train_rm", 1e-6), ("train_dpo", 1e-5)])
def test_a_run_goes_on_in_another_layout(one_rank, two_ranks, bench, unbroken, command, rounding):
    """The loss of preferences is of differences between sums of log-probs: more is lost to rounding."""
    out = f"{command}-elastic"
    assert two_ranks.run(run_until_asked_to_leave, argv(bench, out, **TWO_RANKS), 3, 0, command=command) == [75, 75]
    one_rank.run(run, argv(bench, out, ckpt__load_enable=True), command=command)
    for one, again in zip(step_lines(unbroken[command]), step_lines(bench / out), strict=True):
        assert again["loss"] == pytest.approx(one["loss"], rel=rounding), f"loss of step {one['global_step']}"


def refused(pool, bench, command, changes, source) -> str:
    """What is said where a run would go on from a copy of the checkpoints of `source` with other settings."""
    out = "refused"
    shutil.rmtree(bench / out, ignore_errors=True)
    shutil.copytree(bench / source, bench / out)
    words = argv(bench, out, ckpt__load_enable=True, **changes)
    code, said = pool.run(run_as_command, words, command=command)[0]
    assert code == 2, said
    return said


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("train_dpo", {"model.loss_type": "hinge"}, "--model.loss_type differs: sigmoid in the checkpoint, hinge now"),
        ("train_dpo", {"model.beta": 0.2}, "--model.beta differs: 0.1 in the checkpoint, 0.2 now"),
        ("train_dpo", {"ref.model_name_or_path": "other"}, "the reference model (--ref.model_name_or_path) differs"),
        ("train_rm", {"model.loss_type": "logexp"}, "--model.loss_type differs: sigmoid in the checkpoint, logexp now"),
        ("train_rm", {"model.center_rewards_coef": 0.1}, "--model.center_rewards_coef differs"),
    ],
)
def test_another_objective_or_reference_is_another_run(one_rank, bench, unbroken, command, changes, said):
    changes = {name: bench / value if value == "other" else value for name, value in changes.items()}
    assert said in refused(one_rank, bench, command, changes, f"{command}-unbroken")


def test_a_reference_whose_config_computes_another_function_is_another_run(one_rank, bench):
    reference = shutil.copytree(bench / "other", bench / "reference")
    settings = dict(ref__model_name_or_path=reference)
    one_rank.run(run_until_asked_to_leave, argv(bench, "of-reference", **settings), 1, 0, command="train_dpo")
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    said = "--ref.model_name_or_path (config.json: rms_norm_eps) differs: 1e-06 in the checkpoint, 0.5 now"
    assert said in refused(one_rank, bench, "train_dpo", settings, "of-reference")


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pair_without_a_finite_loss_is_named_and_skipped_on_all_ranks(two_ranks, bench, command):
    out = f"{command}-nan"
    changes = dict(ds__zero_stage=2, ckpt__save_steps=None, ckpt__max_num=None, eval__dataset=bench / "pairs.jsonl")
    words = argv(bench, out, train__max_epochs=1, **changes)
    (code, said), (other, _) = two_ranks.run(run_with_a_pair_of_nan, words, f"{bench / 'pairs.jsonl'}:5", command)
    assert (code, other) == (0, 0), said
    lines = step_lines(bench / out)
    (bad,) = [line["global_step"] for line in lines if line["loss"] is None]
    assert bad < len(lines), "the steps behind it are sound"
    assert f"step {bad}: loss nan" in said
    assert "skipped on all ranks" in said
    assert "pairs.jsonl:5" in said.split("loss not finite on")[1].splitlines()[0]
    assert eval_lines(bench / out)[0]["eval_loss"] is None
    assert all(weight.isfinite().all() for weight in load_file(bench / out / "model.safetensors").values())


def test_pairs_without_a_finite_loss_stop_the_run_without_an_export(two_ranks, bench):
    words = argv(bench, "stopped-by-nan", train__max_epochs=1, train__max_nonfinite_steps_in_a_row=1)
    for code, said in two_ranks.run(run_with_a_pair_of_nan, words, f"{bench / 'pairs.jsonl'}:5", "train_dpo"):
        assert code == EXIT_CODE_STOPPED, said
    assert not (bench / "stopped-by-nan" / "model.safetensors").exists()


NO_PAIRS = {  # what a row is made, and what is told of it
    "all identical": (
        lambda row: row | {"rejected": row["chosen"]},
        "None of the 14 rows can be trained: 14 identical answers",
    ),
    "column missing": (lambda row: {"prompt": row["prompt"], "chosen": row["chosen"]}, "has no column 'rejected'"),
    "answer that is a number": (lambda row: row | {"rejected": 7}, "column 'rejected' holds a number"),
}


@pytest.mark.parametrize("name", NO_PAIRS)
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_pairs_are_told_and_an_earlier_model_is_left_alone(one_rank, bench, unbroken, command, name):
    change, told = NO_PAIRS[name]
    rows = [change(json.loads(line)) for line in (bench / "pairs.jsonl").read_text().splitlines()]
    bad, out = bench / f"{name}.jsonl", unbroken[command]
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    words = argv(bench, out.name, data__dataset=bad)
    code, said = one_rank.run(run_as_command, words, command=command)[0]
    assert (code, told in said, "Traceback" in said) == (2, True, False), said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("margin", "told"), [(math.nan, "pairs_of_nan.jsonl:1, "), (0, "no row has another margin than 0")]
)
def test_a_loss_with_margins_needs_them_before_the_model_is_loaded(one_rank, bench, margin, told):
    rows = [json.loads(line) | {"margin": margin} for line in (bench / "pairs.jsonl").read_text().splitlines()]
    path = bench / f"pairs_of_{margin}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = argv(bench, "margins", data__dataset=path, model__margin_loss_enable=True)
    code, said = one_rank.run(run_as_command, words, command="train_rm")[0]
    assert (code, told in said) == (2, True), said
    assert not (bench / "margins" / "metrics.jsonl").exists()


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_adapters(one_rank, bench):
    """The records of a run with adapters, whose reference is the base under them."""
    one_rank.run(run, argv(bench, "adapters", ds__lora__rank=4, adam__lr=1e-2), command="train_dpo")
    return step_lines(bench / "adapters")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("a second model", {"ref.model_name_or_path": "model"}),
        ("offloaded", {"ref.model_name_or_path": "model", "ref.offload": True}),
        ("computed", {"ref.precompute": True}),
    ],
)
def test_every_kind_of_reference_gives_the_same_run(one_rank, bench, of_adapters, kind, changes):
    changes = {name: bench / value if value == "model" else value for name, value in changes.items()}
    one_rank.run(run, argv(bench, kind, ds__lora__rank=4, adam__lr=1e-2, **changes), command="train_dpo")
    assert of_adapters[-1]["rewards/margins"] > 0.01
    for one, other in zip(of_adapters, step_lines(bench / kind), strict=True):
        for name, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5), ("rewards/margins", 1e-6)):
            of_step = f"{name} of step {one['global_step']}"
            assert other[name] == pytest.approx(one[name], rel=tolerance, abs=tolerance), of_step


def test_a_computed_reference_is_shared_and_known_by_weights(one_rank, bench, monkeypatch):
    cache = bench / "cache" / "references"
    shutil.rmtree(cache, ignore_errors=True)
    computed = dict(ref__precompute=True, train__max_steps=1)

    def files(out, **changes) -> set[str]:
        one_rank.run(run, argv(bench, out, **computed | changes), command="train_dpo")
        return {file.name: file.stat().st_mtime_ns for file in cache.glob("*.f64")}

    first = files("first")
    assert len(first) == 1
    assert files("second", model__beta=0.3) == first, "another run finds it"
    assert len(files("third", ref__model_name_or_path=bench / "other")) == 2, "other weights have a file of their own"
    path = cache / next(iter(first))
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    files("fourth")
    assert path.read_bytes() == content, "a damaged file is computed anew"
    others = bytes([content[0] ^ 1]) + content[1:-8]
    path.write_bytes(others + xxhash.xxh3_64_digest(others))
    words = argv(bench, "fourth", **computed | dict(train__max_steps=2, ckpt__load_enable=True))
    said = one_rank.run(said_by_run, words, command="train_dpo")[0]
    assert "The reference's log-probs (--ref.precompute) were computed anew since the checkpoint was made" in said


def test_a_computed_reference_is_known_by_tokens_and_by_settings_that_could_change_it(bench):
    rows = (bench / "pairs.jsonl").read_text()
    (bench / "another_word.jsonl").write_text(rows.replace("seven", "coffee", 1))
    tokenizer = AutoTokenizer.from_pretrained(bench / "model")

    def file(**changes) -> Path:
        config = parse_config(DPOConfig, argv(bench, "known", ref__precompute=True, **changes))
        return reference_file(config, prepare_pair_dataset(config.data, tokenizer).fingerprint)

    with_code = shutil.copytree(bench / "model", bench / "with_code")
    without, first = file(ref__model_name_or_path=with_code), file()
    assert without == first
    (with_code / "modeling.py").write_text("# with --model.trust_remote_code it computes another function\n")
    others = dict(model__beta=0.3, train__batch_size=2, ds__zero_stage=1, ds__packing_samples=True)
    assert [name for name, value in others.items() if file(**{name: value}) != first] == []
    of_its_own = [
        dict(data__dataset=bench / "another_word.jsonl"),
        dict(data__input_template="Q: {}"),
        dict(ds__param_dtype="bf16"),
        dict(ds__attn_implementation="eager"),
        dict(ref__model_name_or_path=with_code),
    ]
    found = {file(**changes) for changes in of_its_own}
    assert len({first, *found}) == 1 + len(of_its_own)


def test_a_computed_reference_is_gone_when_the_training_begins(one_rank, bench):
    words = dict(ref__model_name_or_path=bench / "other", train__max_steps=1, data__cache_dir=bench / "own_cache")
    assert one_rank.run(reference_lives_in_training, argv(bench, "beside", **words)) == [True]
    assert one_rank.run(reference_lives_in_training, argv(bench, "before", ref__precompute=True, **words)) == [False]


def test_a_reference_with_another_vocabulary_is_refused(one_rank, bench):
    other = save_model(bench / "other_words")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = argv(bench, "vocabulary", ref__model_name_or_path=other)
    code, said = one_rank.run(run_as_command, words, command="train_dpo")[0]
    assert code == 2
    assert "has another vocabulary than --model.model_name_or_path" in said
    assert not (bench / "vocabulary" / "metrics.jsonl").exists()


def test_a_start_from_an_adapter_needs_a_reference_of_its_name(bench, tmp_path):
    """The base under the adapter is not the model that the run starts from."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    words = argv(bench, "from-an-adapter", ds__lora__adapter_name_or_path=tmp_path)
    with pytest.raises(UserError, match="starts from an adapted model.*lora_combiner.*as --ref.model_name_or_path"):
        DPORun.build_objective(parse_config(DPOConfig, words))
    for more in (["--ref.model_name_or_path", str(bench / "model")], ["--model.loss_type", "simpo"]):
        DPORun.build_objective(parse_config(DPOConfig, [*words, *more]))


def test_the_start_table_says_loss_and_reference_and_the_loss_is_the_weighted_sum(one_rank, bench):
    """Before the first update DPO's loss is ln 2, the hinge's 1 and SPPO's 2 (1 / (2 beta))^2, which is 50."""
    mix = dict(model__loss_type="sigmoid,hinge,sppo_hard", model__loss_weights="1,0.2,0.03")
    said = one_rank.run(said_by_run, argv(bench, "table", train__max_steps=1, **mix), command="train_dpo")[0]
    said = " ".join(said.replace("│", " ").split())  # a long path moves words to the next line
    assert "sigmoid + 0.2 hinge + 0.03 sppo_hard; beta 0.1" in said
    assert "a second model" in said
    assert step_lines(bench / "table")[0]["loss"] == pytest.approx(math.log(2) + 0.2 * 1 + 0.03 * 50, rel=1e-6)


SHARED_UNDER_ZERO_3 = dict(ds__zero_stage=3, ds__lora__rank=2, train__max_tokens_per_micro_batch=260)


@pytest.fixture(scope="module")
def long_prompts(bench):
    rows = [json.loads(line) for line in (bench / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt"] = 4 * row["prompt"]
    path = bench / "long_prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("ranks", "command", "layout"),
    [
        ("one_rank", "train_rm", {}),
        ("one_rank", "train_dpo", dict(ref__precompute=True)),
        ("two_ranks", "train_dpo", dict(ds__ring_attn_size=2, model__gradient_checkpointing_enable=True)),
        *slow([("two_ranks", "train_dpo", SHARED_UNDER_ZERO_3)]),
    ],
    ids=str,
)
def test_a_prompt_computed_once_changes_no_number(bench, long_prompts, request, ranks, command, layout):
    def trained(shares: bool) -> tuple[str, list[dict]]:
        out = f"{ranks}-{command}-shares-{shares}"
        settings = dict(data__dataset=long_prompts, ds__packing_samples=True, ds__share_prompts=shares, **layout)
        words = argv(bench, out, ckpt__save_steps=None, ckpt__max_num=None, **settings)
        said = request.getfixturevalue(ranks).run(said_by_run, words, command=command)[0]
        return said, step_lines(bench / out)

    (said, once), (said_twice, twice) = trained(True), trained(False)
    assert "computed once for both answers, which saves" in said
    assert "computed with each answer: --ds.share_prompts false" in " ".join(said_twice.replace("│", " ").split())
    for one, other in zip(once, twice, strict=True):
        assert one["num_tokens"] == other["num_tokens"], (
            "tokens of the data are counted, however often they are computed"
        )
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), f"{name} of step {one['global_step']}"


def test_a_prompt_is_computed_with_each_answer_where_it_cannot_be_shared_or_saves_nothing(
    one_rank, bench, long_prompts
):
    short_prompts = bench / "short_prompts.jsonl"
    rows = [json.loads(line) | {"prompt": "what "} for line in long_prompts.read_text().splitlines()]
    short_prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reasons = {
        "samples are not packed": {},
        "once would save 0.0% of the tokens": dict(ds__packing_samples=True, data__dataset=short_prompts),
        "--ds.attn_implementation per_sample": dict(ds__packing_samples=True, ds__attn_implementation="per_sample"),
    }
    for number, (reason, changes) in enumerate(reasons.items()):
        settings = dict(data__dataset=long_prompts, train__max_steps=1, ckpt__disable_ds=True, ckpt__save_steps=None)
        words = argv(bench, f"not-shared-{number}", ckpt__max_num=None, **settings | changes)
        said = " ".join(one_rank.run(said_by_run, words, command="train_rm")[0].replace("│", " ").split())
        assert f"computed with each answer: {reason}" in said


def test_the_start_table_says_whether_the_head_begins(one_rank, bench, unbroken):
    said = one_rank.run(said_by_run, argv(bench, "table-rm", train__max_steps=1), command="train_rm")[0]
    assert "begins by the seed 42: the model has none" in said
    words = argv(bench, "table-rm-2", train__max_steps=1, model__model_name_or_path=unbroken["train_rm"])
    assert "the model's own" in one_rank.run(said_by_run, words, command="train_rm")[0]
