"""Iterations: a kill anywhere costs nothing that is finished, a changed setting tells what it makes stale.

The model is a word: the stand-in engine answers with it, and the stand-in training adds to it what it was trained on.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

from openrlhf.config import RejectionConfig, parse_config, write_resolved
from openrlhf.config.iterate_settings import SET_BY_THE_ITERATION
from openrlhf.datasets.formats import FORMATS
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from openrlhf.errors import UserError
from openrlhf.rejection import generate as generation
from openrlhf.rejection import iterate
from openrlhf.rejection.engines.encoding import PromptEncoder
from openrlhf.rejection.evaluation import gained, told
from openrlhf.rejection.iterate import rejection_sampling
from openrlhf.rejection.plan import Plan
from openrlhf.rejection.prompts import Prompt
from openrlhf.rejection.records import StoredRows
from tests.helpers.browser import CHROMIUM, in_browser
from tests.helpers.tokenizers import tiny_tokenizer
from tests.rejection.stand_in import KNOWN, StandIn

TRAIN = """
import hashlib, os, pathlib, sys, time, yaml
config = yaml.safe_load(open(sys.argv[2]))
with open({log!r}, "a") as log:
    log.write(config["ckpt"]["output_dir"] + "\\n")
with open({log!r} + ".key", "w") as log:
    log.write(os.environ.get("WANDB_API_KEY", ""))
time.sleep({seconds})
base = pathlib.Path(config["model"]["model_name_or_path"], "model.safetensors").read_bytes()
rows = pathlib.Path(config["data"]["dataset"]).read_bytes()
out = pathlib.Path(config["ckpt"]["output_dir"])
out.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text("{{}}")
(out / "model.safetensors").write_bytes(hashlib.sha256(base + rows).digest())
"""


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "make_engine", lambda config: StandIn(seconds=0.002))
    monkeypatch.setattr(iterate, "TRAIN_MODULE", str(training(tmp_path)))


def training(tmp_path: Path, seconds: float = 0.0) -> Path:
    program = tmp_path / "train.py"
    program.write_text(TRAIN.format(log=str(tmp_path / "trained.log"), seconds=seconds))
    return program


def config_of(tmp_path: Path, *flags: str) -> RejectionConfig:
    base = tmp_path / "base"
    if not base.exists():
        base.mkdir()
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_bytes(b"base")
        for name in ("prompts", "held_out"):
            rows = [{"prompt": f"{name} {number}", "label": KNOWN} for number in range(6)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "model.model_name_or_path": base,
        "data.dataset": tmp_path / "prompts.jsonl",
        "eval.dataset": tmp_path / "held_out.jsonl",
        "generate.n": 4,
        "score.reward": "exact",
        "select.policy": "threshold",
        "select.min_reward": 1,
        "iterate.iterations": 2,
        "iterate.output": tmp_path / "run",
        "iterate.control": "true",
        "iterate.launcher": sys.executable,
        "train.batch_size": 1,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return parse_config(RejectionConfig, [*words, *flags])


def trained(tmp_path: Path) -> list[str]:
    log = tmp_path / "trained.log"
    return [str(Path(line).relative_to(tmp_path / "run")) for line in log.read_text().split()] if log.exists() else []


def generations(run: Path) -> dict[str, list[tuple]]:
    """By folder, what tells its answers apart."""
    return {
        str(folder.relative_to(run)): sorted(
            (row["prompt_id"], row["sample_index"], row["model"], row["response"]) for row in StoredRows(folder)
        )
        for folder in run.rglob("generations")
        if (folder / "manifest.json").exists()
    }


def test_a_training_anew_does_not_go_on_from_the_checkpoints_of_the_old_one(tmp_path: Path) -> None:
    run, of_first = tmp_path / "run", tmp_path / "run/iteration_1/checkpoints"
    rejection_sampling(config_of(tmp_path, "--iterate.iterations", "1"))
    of_first.mkdir()
    with pytest.raises(UserError) as error:
        rejection_sampling(config_of(tmp_path, "--iterate.iterations", "1", "--adam.lr", "1e-3"))
    for name in re.findall(r"iteration_\S+", str(error.value)):
        shutil.rmtree(run / name.rstrip("."))
    rejection_sampling(config_of(tmp_path, "--iterate.iterations", "1", "--adam.lr", "1e-3"))
    assert (of_first.exists(), of_first.with_name("checkpoints.previous").exists()) == (False, True)


def test_the_control_is_pushed_nowhere(tmp_path: Path) -> None:
    plan = Plan(config_of(tmp_path, "--hub.push", "true", "--hub.model_id", "me/x"))
    assert [plan.train(1, tmp_path, of).hub.push for of in ("", "control_")] == [True, False]


def test_a_prompt_is_trained_on_by_the_tokens_that_it_was_asked_with(tmp_path: Path) -> None:
    tokenizer, data = tiny_tokenizer(), Plan(config_of(tmp_path)).train(1, tmp_path).data
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    asked = PromptEncoder(tokenizer, None).encode(Prompt("a", prompt))
    row = FORMATS["prompt_completion"]({"prompt": prompt, "completion": "seven"}, data)
    assert SampleEncoder(tokenizer, data).encode(row).input_ids[: len(asked)].tolist() == asked


def test_a_key_reaches_the_training_and_no_file(tmp_path: Path) -> None:
    rejection_sampling(config_of(tmp_path, "--iterate.iterations", "1", "--logger.wandb.key", "0123456789"))
    assert (tmp_path / "trained.log.key").read_text() == "0123456789"
    assert "WANDB_API_KEY" not in os.environ
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path for path in files if b"0123456789" in path.read_bytes()] == []


def test_keys_and_logins_stand_in_no_file(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, "--generate.engine", "openai", "--generate.url", "https://me:secret@x/v1",
        "--generate.start_command", "python -m x {model} --api-key sk-secret --port 8",
    )  # fmt: skip
    write_resolved(config, tmp_path / "run.yaml")
    written = (tmp_path / "run.yaml").read_text()
    assert "secret" not in written
    assert "url: https://x/v1" in written
    assert "--api-key *** --port 8" in written
    with pytest.raises(UserError, match="from a file that does not hold its key"):
        parse_config(RejectionConfig, ["@", str(tmp_path / "run.yaml")])


def test_iterations_leave_what_the_documents_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = rejection_sampling(config_of(tmp_path))
    run = tmp_path / "run"
    assert trained(tmp_path) == [f"iteration_{k}/{of}model" for k in (1, 2) for of in ("", "control_")]
    found = generations(run)
    assert {name: len(rows) for name, rows in found.items()} == {
        "start/evaluation/generations": 6,
        **{f"iteration_{k}/generations": 24 for k in (1, 2)},
        **{f"iteration_{k}/{of}evaluation/generations": 6 for k in (1, 2) for of in ("", "control_")},
    }
    models = {name: {row[2] for row in rows} for name, rows in found.items()}
    assert models["iteration_1/generations"] == models["start/evaluation/generations"]
    assert models["iteration_2/generations"] == models["iteration_1/evaluation/generations"]
    assert len({model for names in models.values() for model in names}) == 5  # the base, two models, two controls
    selected = list(StoredRows(run / "iteration_1/selected/selected.jsonl"))
    control = list(StoredRows(run / "iteration_1/selected/control.jsonl"))
    assert len(selected) == len(control) == stats["iterations"][1]["num_rows"]
    assert {row["provenance"]["reward"] for row in selected} == {1.0}
    assert selected[0]["provenance"]["iteration"] == 1
    assert json.loads((run / "stats.json").read_text()) == stats
    last = stats["iterations"][2]
    assert last["model"]["num_prompts"] == last["against_control"]["num_prompts"] == 6
    low, high = last["model"]["interval"]
    assert low <= last["model"]["pass_rate"] <= high
    assert (last["model"]["mean_reward"], last["model"]["pass_reward"]) == (last["model"]["pass_rate"], 1)
    said = capsys.readouterr().out
    low, high = last["against_control"]["interval"]
    points = f"{100 * last['against_control']['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    assert f"against control {points}" in said
    assert f"against its control {' ' * 16} {points}" in said
    assert ("which may be chance" in said.splitlines()[-2]) == (low <= 0 <= high)
    manifest = json.loads((run / "iteration_2/manifest.json").read_text())["steps"]
    assert set(manifest) == {"generate", "score", "select", "train", "control_train", "evaluate", "control_evaluate"}
    assert manifest["generate"]["weights"] == next(iter(models["iteration_2/generations"]))


def test_rewards_of_another_scale_than_what_passes_are_told_by_their_means() -> None:
    """A reward model's, say: +0.0 points would say that the training was for nothing."""

    def found(number: int, mean_reward: float) -> dict:
        rate = {"pass_rate": 0.0, "interval": [0.0, 0.0], "num_prompts": 6}
        none = {"difference": 0.0, "interval": [0.0, 0.0], "num_prompts": 6}
        model = {**rate, "mean_reward": mean_reward, "pass_reward": 1.0}
        return {"iteration": number, "num_rows": 3, "model": model, "against_start": none}

    iterations = [found(0, 0.0625), found(1, 0.125)]
    assert told(iterations[0])["mean reward, held-out"] == "0.0625"
    said = dict(gained(iterations))
    assert said["its mean reward"].startswith(
        "0.125: no answer has the reward from which it passes, --score.pass_reward 1"
    )
    assert "against its start" not in said
    assert "against its start" in dict(gained([found(0, 0.0), found(1, 0.0)])), "rewards of 0 are no other scale"


def test_finished_iterations_are_not_run_again_and_more_may_follow(tmp_path: Path) -> None:
    stats = rejection_sampling(config_of(tmp_path))
    begin = time.monotonic()
    assert rejection_sampling(config_of(tmp_path)) == stats
    assert time.monotonic() - begin < 3
    assert len(trained(tmp_path)) == 4
    more = rejection_sampling(config_of(tmp_path, "--iterate.iterations", "3"))
    assert more["iterations"][:3] == stats["iterations"]
    assert trained(tmp_path)[4:] == ["iteration_3/model", "iteration_3/control_model"]


def test_from_the_base_each_training_starts_anew(tmp_path: Path) -> None:
    rejection_sampling(config_of(tmp_path, "--iterate.start_from", "base"))
    bases = {
        (tmp_path / f"run/iteration_{k}/train.yaml").read_text().split("model_name_or_path: ")[1].split()[0]
        for k in (1, 2)
    }
    assert bases == {str(tmp_path / "base")}


def test_kills_at_random_instants_leave_the_same_run(tmp_path: Path) -> None:
    """Of the samples that were kept none is lost or doubled, and the end is that of a run without a kill."""
    training(tmp_path, seconds=0.05)
    (tmp_path / "unbroken").mkdir()
    whole = run_in_child(config_of(tmp_path, "--iterate.output", str(tmp_path / "unbroken")))
    assert os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1]) == 0
    config, chance, num_kills = config_of(tmp_path), random.Random(5), 0
    seen: dict[str, list[tuple]] = {}
    while True:
        child = run_in_child(config)
        time.sleep(chance.uniform(0.02, 0.15 * 1.1**num_kills))  # longer and longer, until it comes to its end
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        now = generations(tmp_path / "run")
        for name, rows in seen.items():
            assert set(rows) <= set(now[name])
        for rows in now.values():
            assert len({row[:2] for row in rows}) == len(rows)
        seen = now
        if not os.WIFSIGNALED(status):
            break
        num_kills += 1
        assert num_kills < 60
    assert os.WEXITSTATUS(status) == 0
    assert num_kills >= 4
    for name in ("iteration_1/selected/selected.jsonl", "iteration_2/selected/selected.jsonl"):
        rows, others = ((tmp_path / of / name).read_text().splitlines() for of in ("run", "unbroken"))
        assert sorted(rows) == sorted(others)


def run_in_child(config: RejectionConfig) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        tqdm.set_lock(threading.RLock())  # a child that is killed takes the shared one along
        try:
            rejection_sampling(config)
            code = 0
        finally:
            os._exit(code)
    return child


FOLLOWING = {"model", "control_model", "evaluation", "control_evaluation", "generations", "scores", "selected"}


@pytest.mark.parametrize(
    ("flag", "value", "stale"),
    [
        ("select.min_reward", "0.5", FOLLOWING),
        ("train.max_epochs", "3", FOLLOWING),
        ("data.control_tokens", "text", FOLLOWING),
        ("eval.n", "2", {"evaluation", "control_evaluation"}),
    ],
)
def test_a_changed_setting_tells_what_it_makes_stale(tmp_path: Path, flag: str, value: str, stale: set[str]) -> None:
    rejection_sampling(config_of(tmp_path))
    with pytest.raises(UserError) as error:
        rejection_sampling(config_of(tmp_path, f"--{flag}", value))
    (sentence,) = error.value.problems
    assert f"--{flag} was" in sentence
    named = sentence.split("are stale: ")[1].split(". Remove them")[0].split()
    assert {Path(path).name for path in named} == stale
    assert "iteration_1/generations" not in named  # what came before the change stays
    before = len(trained(tmp_path))
    for path in named:
        shutil.rmtree(tmp_path / "run" / path)
    rejection_sampling(config_of(tmp_path, f"--{flag}", value))
    assert len(trained(tmp_path)) - before == (0 if flag == "eval.n" else 4)


def test_errors_of_stages_name_what_a_recipe_has(tmp_path: Path) -> None:
    """And a base that is refused is not noted as the one that has answered."""
    config, run = config_of(tmp_path), tmp_path / "run"
    rejection_sampling(config)
    for changed, said in (
        (tmp_path / "held_out.jsonl", "evaluation/generations is the output of another run: the content of eval."),
        (run / "iteration_1/scores/rows-0.jsonl", "iteration_1/scores/rows-0.jsonl has changed since its stage"),
        (run / "iteration_1/selected/stats.json", "selected.jsonl is no selection, and would be lost: remove that and"),
        (tmp_path / "base" / "config.json", "generations is the output of another run: the model's weights is another"),
    ):
        noted, whole = (run / "start" / "manifest.json").read_text(), changed.read_text()
        changed.write_text(whole.replace("1.0", "2.0").replace("held_out 0", "held_out 7") if whole != "{}" else "{} ")
        if changed.name == "stats.json":
            changed.write_text("{}")
        with pytest.raises(UserError) as error:
            rejection_sampling(config)
        assert said in str(error.value)
        assert all(f"--{name}" not in str(error.value) for name in SET_BY_THE_ITERATION)
        assert "give another --iterate.output." in str(error.value) or "put it back" in str(error.value)
        assert (run / "start" / "manifest.json").read_text() == noted
        changed.write_text(whole)


def test_what_another_run_has_made_until_it_ended_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone_in = iterate.alone_in

    @contextmanager
    def after_another_run(folder: Path) -> Iterator[int]:
        monkeypatch.setattr(iterate, "alone_in", alone_in)
        rejection_sampling(config_of(tmp_path))
        with alone_in(folder) as lock:
            yield lock

    monkeypatch.setattr(iterate, "alone_in", after_another_run)
    with pytest.raises(UserError, match=r"--adam.lr was .*, is 0.5\), so these of its steps are stale"):
        rejection_sampling(config_of(tmp_path, "--adam.lr", "0.5"))


def test_more_answers_are_added_to_those_of_the_first_iteration(tmp_path: Path) -> None:
    rejection_sampling(config_of(tmp_path))
    before = generations(tmp_path / "run")["iteration_1/generations"]
    with pytest.raises(UserError, match="--generate.n was 4, is 5") as error:
        rejection_sampling(config_of(tmp_path, "--generate.n", "5"))
    named = str(error.value).split("are stale: ")[1].split(". Remove them")[0].split()
    assert "iteration_1/generations" not in named
    assert {"iteration_1/scores", "iteration_1/model", "iteration_2/generations"} <= set(named)
    for path in named:
        shutil.rmtree(tmp_path / "run" / path)
    rejection_sampling(config_of(tmp_path, "--generate.n", "5"))
    now = generations(tmp_path / "run")["iteration_1/generations"]
    assert len(now) == 30
    assert set(before) < set(now)


def test_a_training_that_fails_is_told_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.exit(3)")
    monkeypatch.setattr(iterate, "TRAIN_MODULE", str(broken))
    with pytest.raises(SystemExit) as error:
        rejection_sampling(config_of(tmp_path))
    assert error.value.code == 3
    assert "iteration 1: train ended with exit code 3" in capsys.readouterr().err
    before = generations(tmp_path / "run")["iteration_1/generations"]
    monkeypatch.setattr(iterate, "TRAIN_MODULE", str(training(tmp_path)))
    rejection_sampling(config_of(tmp_path))
    assert generations(tmp_path / "run")["iteration_1/generations"] == before


def test_help_shows_what_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(RejectionConfig, ["--help"])
    said = capsys.readouterr().out
    assert "--score.reward" in said
    assert [name for name in SET_BY_THE_ITERATION if f"--{name} " in said] == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--score.output", "x"], "--score.output x is set by each iteration"),
        (["--select.policy", "pairs"], "is for train_dpo"),
        (["--ds.lora.rank", "4"], "what a training leaves is an adapter, and the next stage opens whole models"),
        (["--hub.push", "true"], "add --hub.model_id owner/name"),
        (["--select.policy", "random", "--select.min_reward", "none"], "random control of a selection"),
        (["--generate.engine", "openai", "--generate.url", "http://x"], "the trained weights must reach the server"),
        (["--generate.start_command", "serve {model}"], "add --generate.engine openai"),
        (["--generate.start_command", "no-such-server {model}"], "no program no-such-server. Give another, as in vllm"),
        (["--generate.reload_url", "localhost:8000"], "--generate.reload_url 'localhost:8000' is no address"),
        (["--iterate.launcher", "no-such-launcher --module"], "there is no program no-such-launcher"),
        (["--iterate.launcher", "python '-m"], "is no command line: No closing quotation"),
        (["--iterate.launcher", " "], "--iterate.launcher is empty"),
        (["--iterate.iteration", "2"], "Did you mean --iterate.iterations?"),
        (["--train.early_stop_patience", "1"], "is not here: --eval.dataset is answered after a training"),
    ],
)
def test_recipes_that_cannot_be_are_refused_at_once(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        config_of(tmp_path, *flags)
    assert words in str(error.value)


def test_a_template_that_the_server_must_be_given_too_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--generate.engine", "openai", "--generate.url", "http://x", "--data.tokenizer_chat_template", "chatml"]
    for command, is_told in (("python -m x {model}", True), ("python -m x {model} --chat-template y", False)):
        config_of(tmp_path, *flags, "--generate.start_command", command)
        assert ("give it to the server too" in capsys.readouterr().err) == is_told


def test_another_query_of_an_address_is_another_reward(tmp_path: Path) -> None:
    """It names the model; a token may stand there too, so it stands in no file itself."""

    def judged_by(*queries: str) -> list[str]:
        names = ",".join(f"http://x/get_reward{query}" for query in queries)
        steps = Plan(config_of(tmp_path, "--score.reward", names)).steps()
        return [json.dumps(step.settings, default=str) for step in steps if step.name in ("score", "evaluate")]

    settings = [judged_by(*queries) for queries in (("?model=a",), ("?model=b",), ("?model=a", "?model=b"), ("",))]
    assert all(len({one[step] for one in settings}) == 4 for step in range(len(settings[0])))
    assert "model=" not in str(settings)


def test_another_content_of_a_templates_file_makes_the_answers_stale(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    flags = ("--data.tokenizer_chat_template", str(tmp_path / "chat.jinja"), "--iterate.iterations", "1")
    rejection_sampling(config_of(tmp_path, *flags))
    (tmp_path / "chat.jinja").write_text("{{ messages }}!")
    with pytest.raises(UserError, match=r"--data\.tokenizer_chat_template file was .* stale: start/evaluation"):
        rejection_sampling(config_of(tmp_path, *flags))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.label_key", "gold"], "--score.reward exact compares with a label, and the rows of"),
        (["--score.reward", "rewards.py:absent"], "the file rewards.py does not exist"),
    ],
)
def test_rewards_that_cannot_be_are_told_before_the_first_answer(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rejection_sampling(config_of(tmp_path, *flags))
    assert list((tmp_path / "run").glob("*/")) == []


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """The page of two iterations."""
    rejection_sampling(config_of(tmp_path, "--eval.n", "2", "--eval.temperature", "1"))
    return tmp_path / "run" / "report.html"


def test_the_page_shows_model_against_control_and_what_was_kept(reported: Path) -> None:
    page, run = reported.read_text(), reported.parent
    for k in ("pass@1", "pass@2"):
        assert f"<h2>{k} on held-out prompts</h2>" in page
        for name, folder in (("model", "evaluation"), ("control", "control_evaluation")):
            found = json.loads((run / "iteration_2" / folder / "scores" / "stats.json").read_text())
            low, high = found["intervals"][k]
            assert f"{name}: {found[k]:.1%}, from {low:.1%} to {high:.1%}" in page
    by_iteration = json.loads((run / "stats.json").read_text())["iterations"]
    shares = [f"{one['model']['pass_rate']:.1%} " for one in by_iteration]
    assert re.search("<td>held-out</td>" + "".join(f"<td>{share}[^<]*</td>" for share in shares), page)
    assert re.search(rf"<td>held-out after iteration 2</td><td>{shares[2]}", page)
    selected = [json.loads((run / f"iteration_{k}" / "selected" / "stats.json").read_text()) for k in (1, 2)]
    below = [one["left_out"]["below min_reward"] for one in selected]
    assert f"<td>below min_reward</td><td>{below[0]}</td><td>{below[1]}</td>" in page
    for one in selected:
        assert f"kept: {one['num_kept']}</title>" in page
        assert f"left out: {one['num_responses'] - one['num_kept']}</title>" in page
    for remark in ("start, model: reward ", "iteration 2, model: reward ", "iteration 2, control: reward "):
        assert page.count(remark) == 6
    assert "http" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_page_works_in_a_real_browser(reported: Path, tmp_path: Path) -> None:
    shown = in_browser(reported, tmp_path, "--dump-dom")
    assert "prompt 1 of 6 shown" in shown
    assert shown.count('<article class="shown">') == 1
    picture = tmp_path / "page.png"
    in_browser(reported, tmp_path, f"--screenshot={picture}", "--window-size=1200,1600")
    assert picture.stat().st_size > 40_000
