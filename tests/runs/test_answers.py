"""Prompts that are answered while a model trains, and the page that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.config import DPOConfig, RMConfig, SFTConfig, parse_config
from openrlhf.errors import UserError
from openrlhf.parallel.groups import alone
from openrlhf.rejection.rewards.reward import Reward
from openrlhf.run.answering import Answering
from openrlhf.run.builders import build_tokenizer
from openrlhf.run.report import write_report
from tests.helpers.browser import CHROMIUM, in_browser
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML
from tests.helpers.workbench import flags, read_metrics, save_model, save_pairs, save_rows, step_lines
from tests.runs.cases import (
    activities_while_judging,
    run,
    run_as_command,
    run_until_asked_to_leave,
    run_with_an_answer_that_fails,
)

PROMPTS = ("sum of three", "coffee with", "order", "seven is four and", "ready")
JUDGE = """
def long_enough(completions, least, **columns):
    return [None if few is None else float(len(text) >= few) for text, few in zip(completions, least)]
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    save_model(folder / "model")
    save_rows(folder / "rows.jsonl", 30)
    rows = [{"prompt": text, "least": None if text == "order" else 4 + 3 * place} for place, text in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)
    return folder


def model_config(num_positions: int) -> Any:
    return tiny_model("llama", max_position_embeddings=num_positions).config


def words(bench: Path, out: str, **changes) -> list[str]:
    asked = dict(eval__prompts=bench / "prompts.jsonl", eval__prompts_steps=3, eval__prompts_max_new_tokens=6)
    return flags(bench / "model", bench / "rows.jsonl", bench / out, **asked | changes)


@pytest.fixture(scope="module")
def judged(bench, two_ranks):
    """A run of 8 steps on two ranks, with the weights in parts."""
    changes = dict(
        ds__zero_stage=3,
        eval__prompts_reward=f"{bench / 'judge.py'}:long_enough",
        logger__tensorboard_dir=bench / "tensorboard",
        logger__wandb__enable=True,
    )
    two_ranks.run(run, words(bench, "judged", **changes), {"WANDB_MODE": "offline"})
    return bench / "judged"


@pytest.fixture(scope="module")
def adapted(bench, one_rank):
    """The same rows on one rank, with adapters."""
    one_rank.run(run, words(bench, "adapted", ds__lora__rank=4, adam__lr=0.05))
    return bench / "adapted"


@pytest.fixture(scope="module")
def adapted_in_parts(bench, two_ranks):
    """Adapters on two ranks, over a base in parts."""
    words_of_it = words(bench, "adapted_in_parts", ds__lora__rank=4, adam__lr=0.05, ds__zero_stage=3)
    two_ranks.run(run, words_of_it)
    return bench / "adapted_in_parts"


def answers_in(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def plain_answers(model, folder: Path) -> list[str]:
    """Each prompt by itself, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for text in PROMPTS:
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=6, pad_token_id=tokenizer.pad_token_id)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_answers_in_which_the_run_was_asked_to_leave_are_not_made_again(tmp_path):
    answering = object.__new__(Answering)
    answering._file = tmp_path / "answers.jsonl"
    strategy = SimpleNamespace(is_rank_0=lambda: True, groups=SimpleNamespace(control=None))
    trainer: Any = SimpleNamespace(strategy=strategy, progress=SimpleNamespace(optimizer_step=3))
    assert not answering._has_answered(trainer)
    answering._file.write_text('{"global_step": 3}\n')
    assert answering._has_answered(trainer)
    answering._last_step, answered = -1, []  # a process that has answered nothing yet
    answering._answer = answered.append
    answering.on_run_end(trainer)
    assert answered == [], "each prompt stands twice for the last step"
    trainer.progress.optimizer_step = 6
    assert not answering._has_answered(trainer)
    answering.on_run_end(trainer)
    assert answered == [trainer]


def test_answers_that_were_due_when_the_run_left_are_made_when_it_goes_on(bench, adapted, one_rank):
    judge = f"{bench / 'judge.py'}:long_enough"
    like_it = words(bench, "left_early", ds__lora__rank=4, adam__lr=0.05, eval__prompts_reward=judge)
    assert one_rank.run(run_until_asked_to_leave, like_it, 3, 0) == [75]
    assert not (bench / "left_early/answers.jsonl").exists()
    one_rank.run(run, [*like_it, "--ckpt.load_enable"])
    of_judge = ("reward", "reason")
    answers = [{k: v for k, v in one.items() if k not in of_judge} for one in answers_in(bench / "left_early")]
    assert answers == answers_in(adapted)
    rewarded = [line["global_step"] for line in read_metrics(bench / "left_early") if "answer_reward" in line]
    assert rewarded == sorted({one["global_step"] for one in answers})


def test_every_prompt_is_answered_every_three_steps_and_at_the_end(judged):
    found = [(one["global_step"], one["prompt"]) for one in answers_in(judged)]
    assert found == [(step, text) for step in (3, 6, 8) for text in PROMPTS]


@pytest.mark.parametrize("out", ["judged", "adapted", "adapted_in_parts"])
def test_the_last_answers_are_those_of_the_exported_model(request, out):
    folder = request.getfixturevalue(out)
    opened = AutoModelForCausalLM if out == "judged" else AutoPeftModelForCausalLM
    last = [one["response"] for one in answers_in(folder) if one["global_step"] == 8]
    assert last == plain_answers(opened.from_pretrained(folder), folder)


def test_the_mean_of_the_judge_stands_in_the_record_of_the_step(judged):
    for step in (3, 6):
        given = [one["reward"] for one in answers_in(judged) if one["global_step"] == step]
        told = [reward for reward in given if reward is not None]
        assert (len(given), len(told)) == (5, 4)
        record = step_lines(judged)[step - 1]
        assert record["answer_reward"] == pytest.approx(sum(told) / 4)
        assert record["answers_judged"] == 4
    given = [one["reward"] for one in answers_in(judged) if one["global_step"] == 8]
    last = read_metrics(judged)[-1]
    assert last == {"global_step": 8, "answers_judged": 4, "answer_reward": sum(filter(None, given)) / 4}


def test_the_watchdog_lets_a_judge_take_its_time(two_ranks, bench):
    """On the other rank, too, which waits for it."""
    changes = dict(eval__prompts_reward=f"{bench / 'judge.py'}:long_enough", train__max_steps=1)
    answering = "answering --eval.prompts after step 1"
    said = ["starting the judge of --eval.prompts_reward", answering, answering]  # generation, then the judge
    found = two_ranks.run(activities_while_judging, words(bench, "watched", **changes))
    assert found == [[(what, True) for what in said]] * 2


def test_a_judge_that_cannot_begin_ends_the_run_on_all_ranks_with_its_words(two_ranks, bench):
    broken = dict(eval__prompts_reward=save_model(bench / "no_judge"), train__max_steps=1)
    codes, errors = zip(*two_ranks.run(run_as_command, words(bench, "broken", **broken)), strict=True)
    assert codes == (2, 2)
    assert "rank 0: --eval.prompts_reward" in "".join(errors), errors
    assert "callback" not in "".join(errors), errors


def test_a_judge_that_is_gone_ends_no_training(caplog):
    class Gone(Reward):
        def judge(self, rows):
            raise UserError("--score.reward http://host cannot be reached: refused.", "What is scored is kept.")

    answering, rows = Answering.__new__(Answering), [{"prompt": "a"}, {"prompt": "b"}]
    answering._prompts, answering._last_step = [(SimpleNamespace(columns={}), [])] * 2, 7
    answering._add_verdicts(Gone(), rows)
    reason = "--eval.prompts_reward http://host cannot be reached: refused."
    assert rows == [{"prompt": name, "reward": None, "reason": reason} for name in "ab"]
    assert caplog.messages == [f"The answers after step 7 are not judged: {reason}"]


def test_a_rank_that_cannot_answer_ends_the_run_on_all_ranks_with_its_words(two_ranks, bench):
    found = two_ranks.run(run_with_an_answer_that_fails, words(bench, "failing", train__max_steps=1))
    assert [code for code, _ in found] == [3, 3]
    assert "UserError: rank 1: --eval.prompts: 'no kernel'" in "".join(text for _, text in found), found


def test_training_does_not_notice(bench, adapted, one_rank):
    one_rank.run(
        run, words(bench, "silent", ds__lora__rank=4, adam__lr=0.05, eval__prompts=None, eval__prompts_steps=-1)
    )
    with_answers, without = ([line["loss"] for line in step_lines(out)] for out in (adapted, bench / "silent"))
    assert with_answers == without
    assert not (bench / "silent/answers.jsonl").exists()


def test_tensorboard_and_wandb_have_the_answers(bench, judged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(bench / "tensorboard"))
    events.Reload()
    texts = [one for tag in events.Tags()["tensors"] for one in events.Tensors(tag)]
    assert sorted({one.step for one in texts}) == [3, 6, 8]
    assert b"coffee with" in b"".join(one.tensor_proto.string_val[0] for one in texts)
    (table,) = [
        file
        for file in (judged / "wandb").rglob("answers_*.table.json")
        if json.loads(file.read_text())["data"][0][0] == 3
    ]
    assert [row[1] for row in json.loads(table.read_text())["data"]] == list(PROMPTS)


def test_the_page_has_curves_answers_data_and_settings(judged):
    page = (judged / "report.html").read_text()
    assert all(text in page for text in PROMPTS)
    charts = ("loss", "tokens a second", "reward of the answers", "memory of the process, bytes")
    assert all(f"<h2>{chart}</h2>" in page for chart in charts)
    assert "peak memory of rank 0&#x27;s process" in page
    assert "samples trained on" in page
    assert "ds.zero_stage" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_step_that_was_not_finite_is_told_on_the_page(judged, tmp_path):
    lines = step_lines(judged)
    lines[4]["loss"] = None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = parse_config(SFTConfig, flags(judged, judged.parent / "rows.jsonl", tmp_path))
    write_report(tmp_path, config, _Report(), 5, print)
    assert "<td>1: 5</td>" in (tmp_path / "report.html").read_text()


class _Report:
    num_samples = num_tokens = num_target_tokens = 1
    left_out: dict = {}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_draws_the_page(judged, tmp_path):
    shown = in_browser(judged / "report.html", tmp_path, "--dump-dom")
    assert shown.count("<polyline") >= 4
    assert "coffee with" in shown


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
def test_an_answer_ends_at_its_end_token(bench, end):
    """A model that would go on behind it, as rows of a batch do. The template is that of the data, prepared later."""
    config = parse_config(SFTConfig, words(bench, "never"))
    tokenizer = build_tokenizer(config)
    tokenizer.chat_template = None
    text, ends = tokenizer("coffee")["input_ids"], tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    said = [*text, tokenizer.convert_tokens_to_ids(end), *text, *ends]

    class Model:
        device, model = torch.device("cpu"), tiny_model("llama")

        def generate(self, ids, eos_token_id, **_):
            assert eos_token_id == ends
            return torch.cat([ids, torch.tensor([said]).expand(len(ids), -1)], dim=1)

    answering = Answering(config, tokenizer, model_config(512))
    tokenizer.chat_template = CHATML
    assert list(answering._generated(Model(), [text])) == [(tokenizer.decode(text), "stop")]


def test_a_pad_token_without_an_embedding_stands_in_no_prompt(bench):
    config = parse_config(SFTConfig, words(bench, "never"))
    tokenizer = build_tokenizer(config)

    class Model:
        device, model = torch.device("cpu"), tiny_model("llama", vocab_size=len(tokenizer))
        generate = model.generate

    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    answering = Answering(config, tokenizer, model_config(512))
    alone = [answer for prompt in prompts for answer in answering._generated(Model(), [prompt])]
    assert list(answering._generated(Model(), prompts)) == alone


@pytest.mark.parametrize(("most", "sizes"), [(2, [5, 2, 2, 1]), (0, [5, 2, 1])])
def test_answers_for_which_memory_runs_out_are_made_of_fewer_prompts_at_once(bench, most, sizes):
    config = parse_config(SFTConfig, words(bench, "never"))
    tokenizer, seen = build_tokenizer(config), []

    class Model:
        device, model = torch.device("cpu"), tiny_model("llama")
        parameters = model.parameters

        def generate(self, ids, **_):
            seen.append(len(ids))
            if len(ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return torch.cat([ids, ids[:, -1:]], dim=1)

    found = Answering(config, tokenizer, model_config(512))._answers_of(Model(), alone())
    assert seen == sizes
    assert found is None if most == 0 else [number for number, _ in found] == list(range(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(eval__prompts="nowhere.jsonl"), "--eval.prompts nowhere.jsonl"),
        (dict(eval__prompts=None), "--eval.prompts_steps has no prompts to be answered"),
        (dict(eval__prompts_max_new_tokens=100_000), "prompt 1 has .* tokens, and with --eval.prompts_max_new_tokens"),
        (dict(eval__prompts_reward="nowhere"), "--eval.prompts_reward nowhere is no reward"),
        (dict(eval__prompts_reward="nowhere.py:judge"), "--eval.prompts_reward nowhere.py:judge: .*"),
        (dict(eval__prompts_reward="exact,exact"), "names several judges: name one"),
    ],
)
def test_what_cannot_be_is_told_before_data_are_prepared(bench, changes, message):
    def begin() -> None:
        config = parse_config(SFTConfig, words(bench, "never", **changes))
        Answering(config, build_tokenizer(config), model_config(512))

    with pytest.raises(UserError, match=message):
        begin()


def test_a_prompt_with_a_token_that_the_model_lacks_is_told_before_data_are_prepared(bench):
    config = parse_config(SFTConfig, words(bench, "never"))
    small = tiny_model("llama", vocab_size=20).config
    with pytest.raises(UserError, match=r"--eval.prompts: prompt 1 cannot be encoded: .* vocabulary has 20"):
        Answering(config, build_tokenizer(config), small)


def test_the_rank_that_judges_alone_loads_the_judge(bench, monkeypatch):
    """A user's file may load a model, and eight ranks would load it at once."""
    config = parse_config(SFTConfig, words(bench, "never", eval__prompts_reward="nowhere.py:judge"))
    monkeypatch.setenv("RANK", "1")
    Answering(config, build_tokenizer(config), model_config(512))


def test_a_reward_model_answers_nothing(bench):
    pairs = save_pairs(bench / "pairs.jsonl", 4)
    changes = dict(data__input_key=None, data__output_key=None, data__dataset=pairs)
    parse_config(DPOConfig, words(bench, "never", **changes))
    with pytest.raises(UserError, match="--eval.prompts needs a model that answers"):
        parse_config(RMConfig, words(bench, "never", **changes))
