"""Generation: every answer once, whatever cuts it off and whoever goes on; prompts as people write them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from openrlhf.errors import UserError
from openrlhf.rejection import generate as generation
from openrlhf.rejection.generate import generate
from openrlhf.rejection.records import RowWriter
from tests.rejection.stand_in import LONG, StandIn, generate_config, stored

ROWS = [{"prompt": f"question {number}", "label": str(number), "topic": number % 3} for number in range(10)]


def keys(folder: Path) -> list[tuple[str, int]]:
    return [(row["prompt_id"], row["sample_index"]) for row in stored(folder)]


def test_a_row_holds_what_the_contract_says(tmp_path: Path) -> None:
    generate(generate_config(tmp_path, ROWS[:1], "--generate.n", "2"), StandIn())
    first, second = sorted(stored(tmp_path / "out"), key=lambda row: row["sample_index"])
    seeds = {first.pop("seed"), second.pop("seed")}
    assert len(seeds) == 2
    assert {first.pop("response"), second.pop("response")} == {f"answer {seed}" for seed in seeds}
    assert first == {**second, "sample_index": 0}
    assert len(first.pop("prompt_id")) == 32
    assert first == {
        "sample_index": 0, "prompt": "question 0", "finish_reason": "stop", "num_tokens": 3, "model": "a-model",
        "label": "0", "topic": 0,
    }  # fmt: skip


def test_every_prompt_gets_n_answers_and_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, {"prompt": "  "}, {"prompt": LONG}]
    stats = generate(generate_config(tmp_path, rows, "--generate.n", "3"), StandIn())
    assert len(set(keys(tmp_path / "out"))) == len(stored(tmp_path / "out")) == 30
    assert (stats["num_prompts"], stats["num_generations"]) == (10, 30)
    assert stats["left_out"] == {"the prompt is empty": 1, "the prompt is too long": 1}
    said = capsys.readouterr().err
    assert "30 answers to 10 prompts, 3 tokens a piece" in said
    assert "left out, the prompt is too long: 1" in said


def test_a_system_column_is_asked_with_the_messages_as_it_is_trained_with_them(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}], "system": "Be brief."}]
    generate(generate_config(tmp_path, rows), StandIn())
    first, *_ = stored(tmp_path / "out")
    assert [message["role"] for message in first["prompt"]] == ["system", "user"]


def test_equal_prompts_of_two_rows_are_asked_and_labelled_each_for_itself(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "label": "a"}, {"prompt": "x", "label": "b"}]
    generate(generate_config(tmp_path, rows, "--generate.n", "2"), StandIn())
    found = stored(tmp_path / "out")
    by_label = {label: {row["prompt_id"] for row in found if row["label"] == label} for label in "ab"}
    assert by_label["b"] == {f"{next(iter(by_label['a']))}-2"}
    assert len({row["seed"] for row in found}) == 4


@pytest.mark.parametrize(
    ("removed", "said"),
    [("rows-rank-0.jsonl", "20 answers are missing, though all were"), ("manifest.json", "its manifest was removed")],
)
def test_files_that_are_removed_in_the_midst_are_told(tmp_path: Path, removed: str, said: str) -> None:
    class Removes(StandIn):
        def answers(self, requests):  # type: ignore[no-untyped-def]
            yield from super().answers(requests)
            (tmp_path / "out" / removed).unlink()

    with pytest.raises(UserError, match=said):
        generate(generate_config(tmp_path, ROWS, "--generate.n", "2"), Removes())


def test_a_row_of_something_else_is_told(tmp_path: Path) -> None:
    config = generate_config(tmp_path, ROWS)
    generate(config, StandIn())
    with (tmp_path / "out" / "rows-rank-0.jsonl").open("a") as file:
        file.write('{"a": 1}\n')
    with pytest.raises(UserError, match=r"a row that generate has not written \(row \d+ of its files.*'prompt_id'"):
        generate(config, StandIn())


def test_a_seed_depends_on_nothing_but_seed_prompt_and_number(tmp_path: Path) -> None:
    def seeds(folder: str, rows: list, *flags: str) -> dict:
        (tmp_path / folder).mkdir()
        generate(generate_config(tmp_path / folder, rows, *flags), StandIn())
        return {(row["prompt"], row["sample_index"]): row["seed"] for row in stored(tmp_path / folder / "out")}

    one = seeds("one", ROWS)
    more = seeds("more", ROWS[::-1], "--generate.n", "2")
    assert one.items() < more.items()
    assert set(seeds("other", ROWS, "--generate.seed", "7").values()).isdisjoint(one.values())


def test_kills_at_random_instants_cost_nothing_that_was_kept(tmp_path: Path) -> None:
    """The last word of each process is a kill; whatever a reader saw before stays, and nothing comes twice."""
    config = generate_config(tmp_path, ROWS, "--generate.n", "8")
    chance, num_kills, seen = random.Random(3), 0, set()
    while True:
        child = os.fork()
        if child == 0:
            tqdm.set_lock(threading.RLock())  # a child that is killed takes the shared one along
            generate(config, StandIn(seconds=0.002))
            os._exit(0)
        time.sleep(chance.uniform(0.0, 0.05 + 0.01 * num_kills))  # to fork a large process takes a while
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        num_kills += os.WIFSIGNALED(status)
        shard = tmp_path / "out" / "rows-rank-0.jsonl"
        if shard.exists():
            if os.WIFSIGNALED(status) and num_kills % 2:  # a machine that dies may leave a part of a line
                with shard.open("ab") as file:
                    file.write(b'{"prompt_id": "torn", "sample_i')
            now = keys(tmp_path / "out")
            assert len(now) == len(set(now))
            assert seen <= set(now)
            seen = set(now)
        if not os.WIFSIGNALED(status):
            break
    assert num_kills >= 5
    assert len(seen) == 80


def test_what_is_there_is_not_asked_for_again_by_another_engine_or_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, {"prompt": LONG}]
    config = generate_config(tmp_path, rows, "--generate.n", "4")

    class Dies(StandIn):
        def answers(self, requests):
            for number, answer in enumerate(super().answers(requests)):
                if number == 17:
                    raise UserError("the server is gone")
                yield answer

    with pytest.raises(UserError, match="gone"):
        generate(config, Dies())
    before = keys(tmp_path / "out")
    assert len(before) == 17
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    url = ("--generate.engine", "openai", "--generate.url", "http://localhost:1", "--generate.concurrency", "2")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        engine = StandIn()
        stats = generate(generate_config(tmp_path, rows, "--generate.n", "4", *url), engine)
        assert bool(stats) == (rank == 1)  # the last to end sees that nothing is missing
        asked.append(engine.asked)
    answered = [key for of_rank in asked for key in of_rank if key in set(keys(tmp_path / "out"))]
    assert set(answered).isdisjoint(before)
    assert len(set(answered)) == len(answered) == 23
    assert stats["num_generations"] == 40


def test_what_a_run_has_answered_until_it_ended_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, engine = generate_config(tmp_path, ROWS), StandIn()

    class EndsJustNow(RowWriter):
        def __init__(self, *given: Any):
            monkeypatch.setattr(generation, "RowWriter", RowWriter)
            generate(config, StandIn())
            super().__init__(*given)

    monkeypatch.setattr(generation, "RowWriter", EndsJustNow)
    generate(config, engine)
    assert engine.asked == []


def test_a_second_run_on_an_output_is_told_before_it_loads_a_model(tmp_path: Path) -> None:
    generate(generate_config(tmp_path, ROWS), StandIn())
    with RowWriter(tmp_path / "out", "rank-0"), pytest.raises(UserError, match="written by another process"):
        generate(generate_config(tmp_path, ROWS, "--generate.n", "2", model="a-model"))


def test_what_a_refused_run_has_asked_more_of_is_not_told_as_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = generate_config(tmp_path, ROWS, "--generate.n", "3")

    class IsDisturbed(StandIn):
        def answers(self, requests: Any) -> Any:
            with pytest.raises(UserError, match="written by another process"):
                generate(more, StandIn())
            yield from super().answers(requests)

    assert generate(generate_config(tmp_path, ROWS), IsDisturbed()) == {}
    assert "--generate.n was 3 and is 1): start that again" in capsys.readouterr().err
    assert generate(more, StandIn())["num_generations"] == 30


def test_another_content_of_a_templates_file_is_another_output(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    flags = ("--data.tokenizer_chat_template", str(tmp_path / "chat.jinja"))
    generate(generate_config(tmp_path, ROWS, *flags), StandIn())
    generate(generate_config(tmp_path, ROWS, *flags), StandIn())
    (tmp_path / "chat.jinja").write_text("{{ messages }}!")
    with pytest.raises(UserError, match=r"the content of data\.tokenizer_chat_template file is another"):
        generate(generate_config(tmp_path, ROWS, *flags), StandIn())


def test_finished_work_is_neither_asked_for_nor_opened_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = generate_config(tmp_path, ROWS)
    stats = generate(config, StandIn())
    engine = StandIn()
    assert generate(config, engine) == stats
    assert generate(generate_config(tmp_path, ROWS, model="a-model")) == stats  # no engine is made: there is no model
    assert engine.asked == []
    assert "is finished: nothing is left to do" in capsys.readouterr().err


def test_more_answers_are_added_to_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(generate_config(tmp_path, ROWS, "--generate.n", "2"), StandIn())
    before = stored(tmp_path / "out")
    engine = StandIn()
    stats = generate(generate_config(tmp_path, ROWS, "--generate.n", "3"), engine)
    assert "--generate.n was 2 and is 3. The answers that are there stay" in capsys.readouterr().err
    assert len(engine.asked) == 10
    assert {index for _, index in engine.asked} == {2}
    assert stored(tmp_path / "out")[:20] == before
    assert stats["num_generations"] == 30
    with pytest.raises(UserError, match=r"--generate.n was 3 and is 2"):
        generate(generate_config(tmp_path, ROWS, "--generate.n", "2"), StandIn())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--generate.n", "4", "--generate.seed", "1"], "--generate.n was 1 and is 4; --generate.seed was 42 and is 1"),
        (["--generate.temperature", "0.5"], "--generate.temperature was 1.0 and is 0.5"),
        (["--generate.seed", "1"], "--generate.seed was 42 and is 1"),
        (["--data.max_samples", "3"], "--data.max_samples was null and is 3"),
        (["--model.model_name_or_path", "b-model"], "the model's weights"),
    ],
)
def test_other_settings_or_weights_are_another_output(tmp_path: Path, flags: list[str], words: str) -> None:
    generate(generate_config(tmp_path, ROWS), StandIn())
    before = keys(tmp_path / "out")
    with pytest.raises(UserError, match="is the output of another run") as error:
        generate(generate_config(tmp_path, ROWS, *flags), StandIn())
    assert words in str(error.value)
    assert keys(tmp_path / "out") == before


def test_other_prompts_are_another_output(tmp_path: Path) -> None:
    generate(generate_config(tmp_path, ROWS), StandIn())
    with pytest.raises(UserError, match=r"the content of data\.dataset"):
        generate(generate_config(tmp_path, ROWS[:9]), StandIn())


@pytest.mark.parametrize(
    ("row", "flags", "prompt"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, [], "Add.\n\n1, 2"),
        ({"input": "1 + 2"}, ["--data.input_template", "Q: {}\nA: "], "Q: 1 + 2\nA: "),
        ({"question": "1 + 2"}, ["--data.input_key", "question"], "1 + 2"),
        ({"prompt": "1 + 2"}, ["--data.apply_chat_template"], [{"role": "user", "content": "1 + 2"}]),
        (
            {"messages": [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]},
            [],
            [{"role": "user", "content": "1 + 2"}],
        ),
        ({"conversations": [{"from": "human", "value": "1 + 2"}]}, [], [{"role": "user", "content": "1 + 2"}]),
    ],
)
def test_prompts_are_read_from_rows_of_training_too(tmp_path: Path, row: dict, flags: list[str], prompt) -> None:
    generate(generate_config(tmp_path, [row], *flags), StandIn())
    assert stored(tmp_path / "out")[0]["prompt"] == prompt


def test_tools_go_with_their_prompt_and_are_part_of_it(tmp_path: Path) -> None:
    message = {"role": "user", "content": "what time is it?"}
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    rows = [{"messages": [message], "tools": [tool]}, {"messages": [message]}]
    generate(generate_config(tmp_path, rows), StandIn())
    with_tools, without = sorted(stored(tmp_path / "out"), key=lambda row: "tools" not in row)
    assert with_tools["tools"] == [tool]
    assert not with_tools["prompt_id"].startswith(without["prompt_id"])


def test_a_column_with_a_name_of_ours_is_kept_under_another(tmp_path: Path) -> None:
    generate(
        generate_config(tmp_path, [{"prompt": "x", "response": "theirs", "seed": 1, "reasoning": "theirs"}]), StandIn()
    )
    (row,) = stored(tmp_path / "out")
    assert (row["row_response"], row["row_seed"], row["row_reasoning"]) == ("theirs", 1, "theirs")
    assert "reasoning" not in row
    assert row["response"] == f"answer {row['seed']}"
    both = {"prompt": "x", "model": "A", "row_model": "B"}
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: it has the columns 'model' and 'row_model', as which"):
        generate(generate_config(tmp_path, [both], "--generate.output", str(tmp_path / "other")), StandIn())


def test_rows_without_a_prompt_are_told_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl:2.*name the column by --data\.input_key"):
        generate(generate_config(tmp_path, [*ROWS[:1], {"question": "x"}]), StandIn())


@pytest.mark.parametrize("prompt", ["half \ud83d", [{"role": "user", "content": "half \ud83d"}]])
def test_a_prompt_that_no_server_could_be_sent_is_told_with_its_place(tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: the text holds half a surrogate pair"):
        generate(generate_config(tmp_path, [{"prompt": prompt}]), StandIn())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--generate.engine", "openai"], "--generate.engine openai needs --generate.url"),
        (["--generate.url", "http://x"], "add --generate.engine openai"),
        (["--generate.engine", "openai", "--generate.url", "localhost:8000"], "is no address of a server"),
        (["--generate.engine", "openai", "--generate.url", "http://[x"], "is no address of a server"),
        (
            ["--generate.engine", "openai", "--generate.url", "http://x/v1?version=1"],
            "http://x/v1 has a query behind it",
        ),
        (
            ["--generate.engine", "openai", "--generate.url", "http://x", "--generate.max_prompt_len", "9"],
            "--generate.max_prompt_len 9 is not read by --generate.engine openai",
        ),
        (
            ["--generate.engine", "openai", "--generate.url", "http://x", "--data.tokenizer_chat_template", "chatml"],
            "give it to the server, as in vllm serve MODEL --chat-template",
        ),
        (["--data.input_template", "no place"], "must hold the place of the input"),
        (["--generate.top_p", "0"], "leaves no token"),
        (["--model.model_name_or_path", "./nowhere/model"], "does not exist"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        generate_config(tmp_path, ROWS, *flags)
    assert words in str(error.value)
