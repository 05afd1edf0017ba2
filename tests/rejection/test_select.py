"""The command: rows that train_sft and train_dpo take as they are, where each came from, a report, nothing lost."""

from __future__ import annotations

import json

import pytest

from openrlhf.cli.select import main
from openrlhf.config import DataConfig, PairDataConfig, SelectConfig, SelectSettings
from openrlhf.datasets.formats import FORMATS, find_format, pairs
from openrlhf.errors import UserError
from openrlhf.rejection.select import control_of, select
from tests.rejection.scored import answer, write

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
EVIL = "</pre></script><script>alert('x')</script>{{samples}}"


def scores(tmp_path, num_prompts=6, n=4, **more):
    rows = [
        answer(f"{p}+1?", f"it is {p + i}", float(i == 1), i, num_tokens=3 + i, seed=10 * p + i, model="m1", **more)
        for p in range(num_prompts)
        for i in range(n)
    ]
    return write(tmp_path / "scores.jsonl", rows)


def run(tmp_path, source, name="selected.jsonl", **settings):
    output = tmp_path / "out" / name
    stats = select(SelectConfig(select=SelectSettings(input=str(source), output=str(output), **settings)))
    return [json.loads(line) for line in output.read_text().splitlines()], stats


def problems_of(*argv):
    with pytest.raises(UserError) as caught:
        main([str(word) for word in argv])
    return "\n".join(caught.value.problems)


def test_a_selected_row_is_trained_on_without_a_flag_and_says_where_it_came_from(tmp_path):
    rows, _ = run(tmp_path, scores(tmp_path), iteration=2)
    row = next(row for row in rows if row["prompt"] == "3+1?")
    assert (row["completion"], find_format(row, DataConfig(), "row")) == ("it is 4", "prompt_completion")
    prompt_id = row["provenance"].pop("prompt_id")
    assert len(prompt_id) >= 16
    expected = {"sample_index": 1, "seed": 31, "model": "m1", "reward": 1.0, "num_tokens": 4, "iteration": 2}
    assert row["provenance"] == expected


def test_a_conversation_keeps_its_messages_and_tools(tmp_path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    source = write(tmp_path / "scores.jsonl", [answer(CHAT, "4", 1.0, tools=tools), answer(CHAT, "5", 0.0, 1)])
    (row,), _ = run(tmp_path, source)
    assert row["messages"] == [*CHAT, {"role": "assistant", "content": "4"}]
    assert find_format(row, DataConfig(), "row") == "messages"
    assert FORMATS["messages"](row, DataConfig()).tools == tools


def test_what_stands_beside_the_text_is_trained_on(tmp_path):
    call, other = (
        {"id": n, "type": "function", "function": {"name": "add", "arguments": f'{{"a": {n}}}'}} for n in "23"
    )
    rows = [
        answer(CHAT, "", 1.0, tool_calls=[call], reasoning_content="2 and 2"),
        answer(CHAT, "", 0.0, 1, tool_calls=[other]),
    ]
    source = write(tmp_path / "scores.jsonl", rows)
    (row,), _ = run(tmp_path, source)
    said = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "2 and 2"}
    assert row["messages"] == [*CHAT, said]
    assert FORMATS["messages"](row, DataConfig()).messages[-1]["tool_calls"][0]["function"]["arguments"] == {"a": 2}
    (pair,), _ = run(tmp_path, source, "pairs.jsonl", policy="pairs")
    assert (pair["chosen"], pair["rejected"][0]["tool_calls"]) == ([said], [other])
    assert pairs.read(pair, PairDataConfig()).chosen.messages[-1]["reasoning_content"] == "2 and 2"


@pytest.mark.parametrize("prompt", ["2+2?", CHAT])
def test_a_pair_is_trained_on_by_train_dpo(tmp_path, prompt):
    source = write(tmp_path / "scores.jsonl", [answer(prompt, "4", 0.75), answer(prompt, "5", -0.5, 1)])
    (row,), stats = run(tmp_path, source, policy="pairs")
    chosen, rejected = ("4", "5") if prompt != CHAT else ([{"role": "assistant", "content": text}] for text in "45")
    assert (row["chosen"], row["rejected"], row["margin"], stats["num_kept"]) == (chosen, rejected, 1.25, 2)
    assert pairs.read(row, PairDataConfig()).margin == 1.25
    assert [row["provenance"][of]["sample_index"] for of in ("chosen", "rejected")] == [0, 1]


def test_statistics_count_all_that_is_left_out(tmp_path):
    source = scores(tmp_path)
    source.write_text(source.read_text() + '{"prompt": "q", "resp')
    _, stats = run(tmp_path, source, min_reward=0.5)
    assert stats["num_torn_lines"] == 1
    assert "left out: lines that are no rows" in (tmp_path / "out" / "report.html").read_text()
    assert stats == json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (stats["num_rows"], stats["num_responses"], stats["left_out"]) == (6, 24, {"below min_reward": 18})
    assert (stats["pass@1"], stats["pass@4"], stats["mean_reward"], stats["mean_reward_kept"]) == (0.25, 1, 0.25, 1)
    assert stats["intervals"]["pass@1"] == [0.25, 0.25]
    assert stats["lengths"]["kept"]["mean"] == 4
    assert stats["lengths"]["left_out"]["num_responses"] == 18


def test_the_report_shows_numbers_pictures_and_samples_and_runs_nothing_of_them(tmp_path):
    source = write(tmp_path / "scores.jsonl", [answer(EVIL, EVIL, 1.0), answer(EVIL, "no", 0.0, 1)])
    run(tmp_path, source)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "&lt;script&gt;alert" in page
    assert page.count("<svg") == 3
    assert page.count("<article>") == 1
    assert "reward 1.0 · selected" in page
    assert "others of the prompt are better" in page
    assert "http" not in page
    assert " src=" not in page


def test_a_control_stands_beside_the_selection(tmp_path, capsys):
    settings = SelectSettings(
        input=str(scores(tmp_path)), output=str(tmp_path / "out" / "selected.jsonl"), min_reward=1.0
    )
    config = SelectConfig(select=settings)
    select(config)
    stats = select(control_of(config, str(tmp_path / "out" / "control.jsonl")))
    assert stats["num_rows"] == 6
    assert stats["mean_reward_kept"] < 1
    names = {
        "selected.jsonl",
        "report.html",
        "stats.json",
        "control.jsonl",
        "control.report.html",
        "control.stats.json",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert "control.report.html" in capsys.readouterr().out


def test_the_same_selection_is_not_made_again_and_another_is_refused(tmp_path):
    source = scores(tmp_path)
    first, _ = run(tmp_path, source)
    before = (tmp_path / "out" / "selected.jsonl").stat().st_mtime_ns
    assert run(tmp_path, source)[0] == first
    assert (tmp_path / "out" / "selected.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match='is another selection: --select.policy was "best_of_n" and is "random"'):
        run(tmp_path, source, policy="random")
    write(source, [answer()])
    with pytest.raises(UserError, match="the content of --select.input is another"):
        run(tmp_path, source)
    assert [json.loads(line) for line in (tmp_path / "out" / "selected.jsonl").read_text().splitlines()] == first


def test_a_selection_that_was_cut_off_is_made_whole(tmp_path):
    source = scores(tmp_path)
    first, _ = run(tmp_path, source)
    output = tmp_path / "out" / "selected.jsonl"
    for name in ("selected.jsonl", "report.html"):
        (tmp_path / "out" / f".writing-{name}.0a0a").touch()  # as a kill leaves them
    output.write_text(output.read_text()[:50])
    assert run(tmp_path, source)[0] == first
    output.unlink()
    assert run(tmp_path, source)[0] == first
    assert not list((tmp_path / "out").glob(".writing-*"))


def test_a_selection_that_was_edited_is_kept_aside_and_made_again(tmp_path, capsys):
    source = scores(tmp_path)
    first, _ = run(tmp_path, source)
    output = tmp_path / "out" / "selected.jsonl"
    output.write_text(edited := output.read_text() + '{"my": "row"}\n')
    assert run(tmp_path, source)[0] == first
    assert output.with_name("selected.jsonl.previous").read_text() == edited
    assert "has changed since it was selected: it goes aside" in capsys.readouterr().out


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"my": "data"}\n')
    said = problems_of("--select.input", scores(tmp_path), "--select.output", tmp_path / "mine.jsonl")
    assert "is no selection, and would be lost" in said
    assert (tmp_path / "mine.jsonl").read_text() == '{"my": "data"}\n'


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([], [], "holds no answer"),
        ([answer(reward=0.0)], ["--select.min_reward", "1"], "selects none of the 1 answers"),
        ([answer(reward=None)], [], "no verdict 1"),
        ([answer(reward=1.7e308), answer(reward=-1.7e308, index=1)], ["--select.policy", "pairs"], "no verdict 2"),
        ([{"prompt": "p", "response": "r"}], [], "answer 1 has no prompt, response or reward"),
        ([{**answer(), "reward": "high"}], [], "answer 1 has no prompt, response or reward"),
        ([answer(), {**answer(), "reward": 10**400}], [], "answer 2 has no prompt, response or reward"),
        ([{**answer(), "prompt": [1], "prompt_id": "1"}], [], "answer 1 has no prompt, response or reward"),
        (
            [answer("q1", prompt_id=1), answer("q2", prompt_id="1")],
            [],
            "prompts 'q1' (of answer 1) and 'q2' have one prompt_id, '1'",
        ),
        ([answer()], ["--select.policy", "random", "--select.like", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ([answer()], ["--select.policy", "threshold"], "needs --select.min_reward"),
        ([answer()], ["--select.policy", "best"], "--select.policy is 'best'"),
        ([answer()], ["--select.k", "2"], "use --select.policy top_k"),
        ([answer()], ["--select.pass_rate_min", "0.9", "--select.pass_rate_max", "0.1"], "no prompt is between them"),
        ([answer()], ["--select.match_lengths"], "needs --select.like"),
    ],
)
def test_bad_input_is_told_in_words_and_leaves_nothing(tmp_path, rows, words, said):
    source, output = write(tmp_path / "scores.jsonl", rows), tmp_path / "out" / "selected.jsonl"
    assert said in problems_of("--select.input", source, "--select.output", output, *words)
    assert not output.exists()


def test_a_stage_that_is_not_finished_is_not_selected_from(tmp_path):
    (tmp_path / "scores").mkdir()
    said = problems_of("--select.input", tmp_path / "scores", "--select.output", tmp_path / "s.jsonl")
    assert "is no output of a stage" in said
