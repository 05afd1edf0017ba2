"""The command: every answer gets its rewards, or a reason; what is scored stays, whatever dies; no silent 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from openrlhf.cli.score import main
from openrlhf.config import ScoreConfig, ScoreSettings
from openrlhf.errors import UserError
from openrlhf.rejection import score as scoring
from openrlhf.rejection.records import RowWriter, StoredRows, content_of
from openrlhf.rejection.reward_scorer import RewardScorer
from openrlhf.rejection.rewards.exact_reward import ExactReward
from openrlhf.rejection.rewards.function_reward import FunctionReward
from openrlhf.rejection.rewards.model_reward import ModelReward
from openrlhf.rejection.score import score
from tests.helpers.tokenizers import CHATML, tiny_tokenizer
from tests.objectives.reward_cases import tiny_classifier
from tests.rejection.scored import write

CHAT = [{"role": "user", "content": "2+2?"}]


def generations(path: Path, responses, **more) -> Path:
    rows = [
        {
            "prompt_id": f"p{n // 4}",
            "sample_index": n % 4,
            "prompt": f"q{n // 4}?",
            "response": text,
            "num_tokens": n,
            **more,
        }
        for n, text in enumerate(responses)
    ]
    return write(path / "generations.jsonl", rows)


def functions(path: Path, text: str) -> Path:
    (path / "rewards.py").write_text("import os, signal, subprocess, sys, time\n" + text)
    return path / "rewards.py"


def run(tmp_path, source, reward, output="scores", **settings):
    out = tmp_path / output
    stats = score(
        ScoreConfig(score=ScoreSettings(input=str(source), output=str(out), reward=reward, workers=2, **settings))
    )
    return {row["response"]: row for row in rows_of(out)}, stats


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows-0.jsonl").read_text().splitlines()]


def test_workers_score_the_answers_of_two_models_in_one_file(tmp_path):
    """They share prompts and numbers: each range has a shard of its own, and each answer its row."""
    rows = [{"prompt": "q", "prompt_id": "p", "sample_index": n, "response": f"{m} {n}", "model": m, "label": "a 1"}
            for m in "ab" for n in range(2)]  # fmt: skip
    source, out = StoredRows(write(tmp_path / "both.jsonl", rows)), tmp_path / "scores"
    out.mkdir()
    config = ScoreConfig(score=ScoreSettings(input=str(source.path), output=str(out), reward="exact"))
    judge = scoring._judge_ranges(config, out)
    shards = [judge(given)[0] for given in scoring._ranges(source, set(), size=2)]
    found = [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]
    assert [(row["response"], row["reward"]) for row in found] == [("a 0", 0), ("a 1", 1), ("b 0", 0), ("b 1", 0)]


def problems_of(*argv) -> str:
    with pytest.raises(UserError) as caught:
        main([str(word) for word in argv])
    return "\n".join(caught.value.problems)


FAILURES = {
    "raises": "ValueError: no 7",
    "hangs": "no verdict within 1 s",
    "is killed": "its process was killed, as when memory runs out",
    "leaves": "its process ended with code 3",
    "two numbers": "returned 2 numbers for 1 answers",
    "nan": "returned nan",
    "text": "returned str where a number belongs",
    "none": "no verdict",
    "nothing": "returned NoneType where a list of numbers belongs",
}
FAILING = """
def judge(completions, **columns):
    results = []
    for text in completions:
        if text == "raises": raise ValueError("no 7\\nsecond line")
        if text == "hangs": time.sleep(1000)
        if text == "is killed": os.kill(os.getpid(), signal.SIGKILL)
        if text == "leaves": os._exit(3)
        if text == "two numbers": results.append(0.0)
        if text == "nothing": return None
        results.append({"nan": float("nan"), "text": "high", "none": None}.get(text, 0.5))
    return results
"""


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_failure_is_no_verdict_with_its_reason_and_spoils_no_other_answer(tmp_path, batch_size):
    fine = [f"fine {n}" for n in range(9)]
    texts = [text for pair in zip(FAILURES, fine, strict=True) for text in pair]
    reward = f"{functions(tmp_path, FAILING)}:judge"
    rows, stats = run(tmp_path, generations(tmp_path, texts), reward, timeout_seconds=1.0, batch_size=batch_size)
    assert {text: rows[text]["reason"] for text in FAILURES} == {t: f"judge: {r}" for t, r in FAILURES.items()}
    assert {rows[text]["reward"] for text in FAILURES} == {None}
    assert {rows[text]["reward"] for text in fine} == {0.5}
    assert (stats["num_scored"], sum(stats["left_out"].values()), stats["mean_reward"]) == (9, 9, 0.5)
    assert stats["left_out"]["judge: ValueError"] == 1


SIGNATURES = """
from dataclasses import dataclass

@dataclass
class Number:
    value: float
    def item(self): return self.value

class Tensor(list):
    def tolist(self): return [[x] for x in self]

def trl(prompts, completions, level, **columns):
    assert isinstance(columns["label"], list) and columns["sample_index"] is not None
    return [Number(len(p) + 10 * len(c) + 100 * k) for p, c, k in zip(prompts, completions, level)]

def trl_messages(completions):
    return [float(c[0]["role"] == "assistant" and c[0]["content"] == "four") for c in completions]

def openrlhf(queries, prompts, labels):
    assert all(q.startswith(p) for q, p in zip(queries, prompts))
    rewards = [len(q) - len(p) + int(label) for q, p, label in zip(queries, prompts, labels)]
    return {"rewards": Tensor(rewards), "scores": None}

async def awaited(completions, **columns):
    return [True for _ in completions]
"""


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("trl", "2+2?", 244.0),
        ("trl_messages", CHAT, 1.0),
        ("openrlhf", "2+2?", 11.0),
        ("openrlhf", CHAT, 11.0),
        ("awaited", CHAT, 1.0),
    ],
)
def test_both_signatures_are_told_by_their_parameters(tmp_path, name, prompt, expected):
    source = write(tmp_path / "g.jsonl", [{"prompt": prompt, "response": "four", "label": "7", "level": 2}])
    rows, _ = run(tmp_path, source, f"{functions(tmp_path, SIGNATURES)}:{name}")
    assert (rows["four"]["reward"], rows["four"]["reason"]) == (expected, None)
    assert rows["four"]["level"] == 2


def test_a_function_sees_what_stands_beside_the_text(tmp_path):
    text = """
def judge(completions):
    return [float(c[0]["reasoning_content"] == "2 and 2" and len(c[0]["tool_calls"])) for c in completions]
"""
    beside = {"reasoning_content": "2 and 2", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    source = write(tmp_path / "g.jsonl", [{"prompt": CHAT, "response": "", **beside}])
    assert run(tmp_path, source, f"{functions(tmp_path, text)}:judge")[0][""]["reward"] == 1.0


def test_an_asynchronous_function_may_keep_what_is_bound_to_its_loop(tmp_path):
    """As a client's connections are."""
    text = """
import asyncio
loops = set()
async def judge(completions):
    loops.add(asyncio.get_running_loop())
    return [float(len(loops)) for _ in completions]
"""
    reward = FunctionReward(f"{functions(tmp_path, text)}:judge", 30.0, 1)
    try:
        found = [reward.judge([{"prompt": "q", "response": text}])[0].value for text in "abc"]
    finally:
        reward.close()
    assert found == [1.0, 1.0, 1.0]


def test_several_rewards_are_weighted_and_a_failed_one_leaves_no_sum(tmp_path):
    text = """
def a(completions, **columns): return [1.0 for _ in completions]
odd = {"none": None, "bad": float("inf"), "huge": 1e308, "large": 1e38}
def b(completions, **columns): return [odd.get(c, 2.0) for c in completions]
"""
    path = functions(tmp_path, text)
    source = generations(tmp_path, ["good", "none", "bad", "huge"])
    rows, stats = run(tmp_path, source, f"{path}:a, {path}:b,{path}:a", weights="1,0.25,-3")
    assert rows["good"]["rewards"] == {"a": 1.0, "b": 2.0, "a_2": 1.0}
    assert [rows[of]["reward"] for of in ("good", "none", "bad")] == [-1.5, -2.0, None]
    assert rows["bad"]["reason"] == "b: returned inf"
    assert rows["huge"]["reason"] == "b: returned a number beyond 1e+38"
    assert stats["mean_reward"] == -1.75
    assert stats["mean_rewards"] == {"a": 1.0, "b": 2.0, "a_2": 1.0}
    source = generations(tmp_path, ["large", "good"])
    rows, stats = run(tmp_path, source, f"{path}:b", "weighed", weights="1e10")
    reason = "the weighted sum: it is a number beyond 1e+38"
    assert (rows["large"]["reward"], rows["large"]["reason"], stats["left_out"]) == (None, reason, {reason: 1})


def test_a_function_has_its_processes_beside_other_rewards_too(tmp_path):
    text = "def judge(completions): return [float(os.getpid()) for _ in completions]\n"
    rows, _ = run(tmp_path, generations(tmp_path, "abcdef", label="a"), f"exact,{functions(tmp_path, text)}:judge")
    assert len({row["rewards"]["judge"] for row in rows.values()}) == 2


def test_the_packs_of_a_reward_model_are_not_empty_beside_a_function():
    model, function = ModelReward.__new__(ModelReward), FunctionReward("math", 1.0, 1)
    sizes = [scoring._rows_a_batch(rewards) for rewards in ([model], [model, function], [ExactReward(), function])]
    assert sizes == [1024, 64, 1]


def test_what_a_killed_function_has_started_dies_with_it(tmp_path):
    text = f"""
def judge(completions, **columns):
    child = subprocess.Popen(["sleep", "1000"])
    open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
    time.sleep(1000 if completions == ["hangs"] else 0)
    return [1.0]
"""
    run(tmp_path, generations(tmp_path, ["fine", "hangs"]), f"{functions(tmp_path, text)}:judge", timeout_seconds=0.5)
    assert has_ended(int((tmp_path / "pid").read_text()))


def has_ended(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process is gone, or only its entry is left, within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_what_is_scored_before_a_kill_is_not_scored_again(tmp_path):
    calls = tmp_path / "calls"
    text = f"""
def judge(completions, **columns):
    with open({str(calls)!r}, "a") as file: file.write(f"{{os.getpid()}} {{completions[0]}}\\n")
    time.sleep(0.02)
    return [float(completions[0])]
"""
    source, out = generations(tmp_path, map(str, range(60))), tmp_path / "scores"
    words = ["--score.input", source, "--score.output", out, "--score.workers", "2"]
    words += ["--score.reward", f"{functions(tmp_path, text)}:judge"]
    command = [sys.executable, "-m", "openrlhf.cli.score", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (calls.exists() and calls.read_text().count("\n") > 15):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert all(has_ended(int(line.split()[0])) for line in calls.read_text().splitlines())
    with (out / "rows-0.jsonl").open("a") as file:
        file.write('{"prompt_id": "torn')
    kept = [line for line in (out / "rows-0.jsonl").read_text().splitlines() if not line.endswith("torn")]
    calls.unlink()
    main([str(word) for word in words])
    again = {line.split()[1] for line in calls.read_text().splitlines()}
    assert len(kept) > 5
    assert again == {str(n) for n in range(60)} - {json.loads(line)["response"] for line in kept}
    assert (out / "rows-0.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert sorted(row["reward"] for row in rows_of(out)) == list(range(60))


def test_a_finished_stage_is_not_scored_again_and_another_is_refused(tmp_path):
    log = tmp_path / "imported"
    text = f"open({str(log)!r}, 'a').write('.')\ndef judge(completions, **columns): return [1.0 for _ in completions]\n"
    path, source = functions(tmp_path, text), generations(tmp_path, ["a", "b"], label="a")
    _, stats = run(tmp_path, source, f"{path}:judge")
    before = (tmp_path / "scores" / "rows-0.jsonl").stat().st_mtime_ns
    num_imports = len(log.read_text())
    assert run(tmp_path, source, f"{path}:judge", pass_reward=1.0)[1] == stats
    assert (tmp_path / "scores" / "rows-0.jsonl").stat().st_mtime_ns == before
    assert len(log.read_text()) == num_imports  # no reward is started, which may load a model
    with pytest.raises(UserError, match="is the output of another run: --score.reward was"):
        run(tmp_path, source, "exact")
    path.write_text(path.read_text() + "# another\n")
    with pytest.raises(UserError, match="the content of the reward judge is another"):
        run(tmp_path, source, f"{path}:judge")
    assert [row["reward"] for row in rows_of(tmp_path / "scores")] == [1.0, 1.0]


def test_another_pass_reward_counts_finished_scores_anew_and_judges_nothing(tmp_path):
    log = tmp_path / "judged"
    text = (
        f"def judge(completions):\n    open({str(log)!r}, 'a').write('.')\n    return [float(c) for c in completions]\n"
    )
    reward, source = f"{functions(tmp_path, text)}:judge", generations(tmp_path, ["0", "0.5", "1", "1"])
    assert run(tmp_path, source, reward)[1]["pass@1"] == 0.5
    before = content_of(tmp_path / "scores")
    assert run(tmp_path, source, reward, pass_reward=0.5)[1]["pass@1"] == 0.75
    assert json.loads((tmp_path / "scores" / "stats.json").read_text())["pass@1"] == 0.75
    assert (content_of(tmp_path / "scores"), log.read_text()) == (before, "....")


def test_rows_that_are_removed_in_the_midst_are_told(tmp_path):
    text = f"def judge(completions):\n    os.remove({str(tmp_path / 'scores' / 'rows-0.jsonl')!r})\n    return [1.0]\n"
    with pytest.raises(UserError, match="were removed while score was at work: start the same command again"):
        run(tmp_path, generations(tmp_path, ["a"]), f"{functions(tmp_path, text)}:judge")


def test_what_a_run_has_scored_until_it_ended_is_not_scored_again(tmp_path, monkeypatch):
    source = generations(tmp_path, ["a", "b"], label="a")

    class EndsJustNow(RowWriter):
        def __init__(self, *given):
            monkeypatch.setattr(scoring, "RowWriter", RowWriter)
            run(tmp_path, source, "exact")
            super().__init__(*given)

    monkeypatch.setattr(scoring, "RowWriter", EndsJustNow)
    run(tmp_path, source, "exact")
    assert len(rows_of(tmp_path / "scores")) == 2


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("missing.py:judge", "the file missing.py does not exist"),
        ("rewards.py:absent", "rewards.py has no function 'absent'; it has judge, odd"),
        ("broken.py:judge", "broken.py cannot be imported: SyntaxError"),
        ("leaving.py:judge", "leaving.py cannot be imported: SystemExit: 4"),
        ("rewards.py:odd", "rewards.py:odd takes a, b: write f(completions, **columns)"),
        ("nowhere/model", "--score.reward nowhere/model is no reward: give file.py:function"),
        ("exact", "compares with a label, and the rows of"),
        ("", "--score.reward is missing"),
        ("rewards.py:judge,exact --score.weights 1", "gives 1 numbers for 2 rewards"),
        ("exact --score.weights one", "must be numbers by commas"),
        ("rewards.py:judge --score.timeout_seconds 1 --score.input empty.jsonl", "holds no answer"),
        ("rewards.py:judge --score.input rewards.py", "holds no answer"),
        ("rewards.py:judge --score.input nowhere", "nowhere does not exist"),
        ("rewards.py:judge --score.input half.jsonl", "half.jsonl: answer 2 has no prompt and response"),
        ("rewards.py:judge --score.input odd.jsonl", "odd.jsonl: answer 1 has no prompt and response"),
        ("rewards.py:judge --score.input mixed.jsonl", "prompts 'q' (of answer 1) and 'r' have one prompt_id, 'p'"),
        ("http://me:pw@x/get_reward", "--score.reward http://x/get_reward: a login before the address"),
        ("HTTP://me:pw@x/get_reward", "--score.reward HTTP://x/get_reward: a login before the address"),
        ("http://[x/get_reward", "--score.reward http://[x/get_reward is no address of a server"),
        ("HTTP://x:99999/get_reward?token=T", "--score.reward HTTP://x:99999/get_reward is no address of a server"),
        ("http:/x/y?token=T", "--score.reward http:/x/y is no reward"),
        (
            "rewards.py:judge",
            "No answer of generations.jsonl has a reward: judge: KeyError (2). The column reason of the rows in out "
            "says why. What has failed is not judged again: once that is mended, remove out, and start again.",
        ),
    ],
)
def test_bad_input_is_told_in_words(tmp_path, monkeypatch, reward, said):
    monkeypatch.chdir(tmp_path)
    functions(tmp_path, "def judge(completions, **columns): return [columns['gold']]\ndef odd(a, b): return [1.0]\n")
    Path("broken.py").write_text("def judge(:\n")
    Path("leaving.py").write_text("import sys; sys.exit(4)\n")
    Path("empty.jsonl").write_text("")
    Path("half.jsonl").write_text('{"prompt": "q", "response": "a"}\n{"prompt": "q", "response": null}\n')
    Path("odd.jsonl").write_text('{"prompt": [1], "response": "a"}\n')
    write(Path("mixed.jsonl"), [{"prompt": q, "prompt_id": "p", "response": q, "gold": 1} for q in "qr"])
    generations(Path(), ["a", "b"])
    words = ["--score.input", "generations.jsonl", "--score.output", "out", "--score.reward", *(reward.split() or [""])]
    assert said in problems_of(*words)


def test_a_file_that_cannot_be_imported_is_told_before_the_answers_are_read(tmp_path, monkeypatch):
    path = functions(tmp_path, "import no_such_module\n")
    monkeypatch.setattr("openrlhf.rejection.score.StoredRows", lambda path: pytest.fail("answers were read"))
    start = time.monotonic()
    assert "No module named 'no_such_module'" in problems_of("--score.input", "x", "--score.reward", f"{path}:judge")
    assert time.monotonic() - start < 10  # a second on a quiet machine


def test_the_report_shows_rewards_reasons_and_texts_that_cannot_run(tmp_path):
    evil = "<script>alert(1)</script>"
    source = write(
        tmp_path / "g.jsonl", [{"prompt": evil, "response": evil, "label": evil}, {"prompt": "q", "response": "a"}]
    )
    run(tmp_path, source, "exact")
    page = (tmp_path / "scores" / "report.html").read_text()
    assert page.count("<script>") == 1
    assert "no verdict: exact: the row has no label" in page
    assert "pass@1 100.0%" in page
    assert page.count("<svg") == 3


def test_equal_rows_are_scored_once_and_told_and_rows_without_identity_get_one(tmp_path):
    """Rows of one answer that other labels belong to are not equal."""
    row = {"prompt": "q", "response": "a", "label": "a"}
    source = tmp_path / "g.jsonl"
    rows = [row, {**row, "response": "b"}, {**row, "sample_index": 0}, {**row, "sample_index": 0, "label": "c"}]
    source.write_text("no row\n" + write(source, rows).read_text())
    _, stats = run(tmp_path, source, "exact")
    found = [(one["response"], one["sample_index"], one["reward"]) for one in rows_of(tmp_path / "scores")]
    assert found == [("a", 0, 1), ("b", 1, 0), ("a", 0, 0)]
    assert (stats["num_repeated"], stats["num_torn_lines"]) == (1, 1)
    assert "rows that repeat others, left out" in (tmp_path / "scores" / "report.html").read_text()
    assert run(tmp_path, source, "exact", pass_reward=0.5)[1]["num_repeated"] == 1


def test_a_fork_that_a_function_leaves_behind_answers_nobody(tmp_path):
    text = "os.fork()\ndef judge(completions, **columns):\n    os.fork()\n    return [float(completions[0])]\n"
    rows, _ = run(tmp_path, generations(tmp_path, map(str, range(20))), f"{functions(tmp_path, text)}:judge")
    assert {text: row["reward"] for text, row in rows.items()} == {str(n): float(n) for n in range(20)}


SLEEP, WITHOUT_OTHER_THREADS = "time.sleep(1000)", "__import__('re').match('(a+)+$', 'a' * 99 + 'b')"


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGINT, SLEEP), (signal.SIGKILL, SLEEP), (signal.SIGKILL, WITHOUT_OTHER_THREADS)]
)
def test_functions_end_with_the_stage_however_that_ends(tmp_path, number, at):
    text = f"""
def judge(completions, **columns):
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    {at}
"""
    pid = tmp_path / "pid"
    words = ["--score.input", generations(tmp_path, ["a", "b"]), "--score.output", tmp_path / "out"]
    words += ["--score.reward", f"{functions(tmp_path, text)}:judge", "--score.timeout_seconds", "500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "openrlhf.cli.score", *map(str, words)], stderr=subprocess.DEVNULL
    )
    while not pid.exists() or not pid.read_text():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.wait(timeout=20)
    is_gone = has_ended(int(pid.read_text()))
    with suppress(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert is_gone


def saved_judge(folder: Path, template: str = CHATML) -> RewardScorer:
    """A reward model in the folder, which gives the scorer of it."""
    model, tokenizer = tiny_classifier("qwen3"), tiny_tokenizer(template)
    model.config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return RewardScorer(str(folder))


def test_a_reward_model_judges_an_answer_with_the_tools_of_its_prompt(tmp_path):
    """As it was trained: the chat template prints them."""
    template = "{{ tools | tojson if tools else '' }}" + CHATML
    scorer = saved_judge(tmp_path / "judge", template)
    tools = [{"type": "function", "function": {"name": "get_menu", "parameters": {"type": "object"}}}]
    row = {"prompt": CHAT, "response": "seven"}
    source = write(tmp_path / "g.jsonl", [row | {"tools": json.dumps(tools)}])
    rows, _ = run(tmp_path, source, str(tmp_path / "judge"))
    messages = [*CHAT, {"role": "assistant", "content": "seven"}]
    text = tiny_tokenizer(template).apply_chat_template(messages, tools=tools, tokenize=False)
    expected, without = scorer.scores([text, messages])
    assert "get_menu" in text
    assert rows["seven"]["reward"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - without) > 1e-4


def test_a_reward_model_judges_prompts_and_answers(tmp_path):
    scorer = saved_judge(tmp_path / "judge")
    pairs = [("2+2?", "four"), (CHAT, "seven"), ("2+2?", "a long answer " * 9)]
    source = write(tmp_path / "g.jsonl", [{"prompt": prompt, "response": text} for prompt, text in pairs])
    rows, stats = run(tmp_path, source, str(tmp_path / "judge"), max_len=40, max_tokens_per_micro_batch=64)
    expected = scorer.scores(pairs)
    assert [rows[text]["rewards"]["judge"] for _, text in pairs[:2]] == pytest.approx(expected[:2], abs=1e-6)
    assert rows[pairs[2][1]]["reward"] is None
    assert "more than fit into the 40 tokens that the model is given" in rows[pairs[2][1]]["reason"]
    assert stats["num_scored"] == 2
