"""Configuration files: read, overruled by flags, and written so that they read back the same."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from openrlhf.config import SFTConfig, parse_config, shown_values, write_resolved
from openrlhf.config.parse import read_given
from openrlhf.config.schema import build, settings
from openrlhf.config.sources import read_config_file
from openrlhf.errors import UserError, first_line_of
from openrlhf.run.model_card import changed_settings

TOML = """
optim = "muon"
[train]
batch_size = 16
[ds]
packing_samples = true
lora.rank = 4
[adam]
betas = [0.8, 0.9]
"""
YAML = """
optim: muon
train: {batch_size: 16}
ds.packing_samples: true
ds.lora.rank: 4
adam: {betas: [0.8, 0.9]}
eval:
"""


def read_back(path) -> SFTConfig:
    reading = read_given(SFTConfig, read_config_file(str(path)))
    assert reading.problems == []
    return build(SFTConfig, reading.values)


@pytest.mark.parametrize(("name", "text"), [("run.toml", TOML), ("run.yaml", YAML)])
@pytest.mark.parametrize("form", ["@ {}", "@{}", "--config {}", "--config={}"])
def test_names_are_nested_or_dotted(good_flags, tmp_path, name, text, form):
    (tmp_path / name).write_text(text)
    config = parse_config(SFTConfig, good_flags + form.format(name).split())
    assert (config.optim, config.train.batch_size, config.ds.lora.rank) == ("muon", 16, 4)
    assert config.ds.packing_samples
    assert config.adam.betas == (0.8, 0.9)


def test_a_flag_wins_over_the_file_wherever_it_stands(good_flags, tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nbatch_size = 16\nseed = 7\n")
    config = parse_config(SFTConfig, [*good_flags, "--train.batch_size", "32", "@", "run.toml"])
    assert (config.train.batch_size, config.train.seed) == (32, 7)


def test_the_later_of_two_files_wins(good_flags, tmp_path):
    (tmp_path / "a.toml").write_text("max_norm = 1.5\n")
    (tmp_path / "b.yaml").write_text("max_norm: 2.5\n")
    assert parse_config(SFTConfig, [*good_flags, "@a.toml", "@b.yaml"]).max_norm == 2.5


def test_a_file_ends_the_values_of_a_flag(good_flags, tmp_path):
    (tmp_path / "run.toml").write_text("max_norm = 2\n")
    config = parse_config(SFTConfig, [*good_flags, "--ds.packing_samples", "@", "run.toml"])
    assert config.ds.packing_samples
    assert config.max_norm == 2


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "run.toml",
            "[train]\nbatch_sise = 3\n",
            "run.toml: train.batch_sise is unknown. Did you mean train.batch_size?",
        ),
        ("run.toml", "train = 3\n", "run.toml: train is a group of settings"),
        ("run.toml", "[train]\nbatch_size = true\n", "run.toml: train.batch_size needs a value"),
        ("run.yaml", "train:\n  batch_size: many\n", "run.yaml: train.batch_size is 'many'"),
        ("run.yaml", "train:\n  seed: [1]\n", "takes one value, but a list is given, which holds 1. Write the value"),
        ("run.toml", "[train\n", "run.toml is broken"),
        ("run.yaml", "a: b: c\n", "run.yaml is broken"),
        ("run.yaml", "just words\n", "run.yaml holds no settings"),
        ("run.yaml", "train.seed: 4\nseed: 5\n", "run.yaml: seed is train.seed by another name: leave one of the two"),
        ("run.toml", "bf16 = true\nds.param_dtype = 'fp32'", "run.toml: ds.param_dtype is bf16 by another name"),
        ("run.yaml", "ckpt.save_minutes: 1:30\n", "(1:30 is 90), and one that begins with 0 by eight (010 is 8)"),
        ("run.yaml", "adam.lr: 1:30.5\n", "write the number that is meant, or quote it (line 1, column 10)"),
        ("run.yaml", "train: {seed: 010}\n", "write the number that is meant, or quote it (line 1, column 15)"),
        ("run.ini", "", "must end in .toml, .yaml or .yml"),
    ],
)
def test_a_wrong_file_is_one_problem_that_names_it(good_flags, tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        parse_config(SFTConfig, [*good_flags, "@", name])
    (found,) = caught.value.problems
    assert problem in found


def test_other_numbers_of_yaml_and_one_name_in_two_files_are_taken(good_flags, tmp_path):
    (tmp_path / "a.yaml").write_text("train: {batch_size: 1_024, seed: '010'}\nmax_norm: 0.5\nadam.lr: 1.0e-5\n")
    (tmp_path / "b.yaml").write_text("train_batch_size: 0x10\n")
    config = parse_config(SFTConfig, [*good_flags, "@a.yaml", "@b.yaml", "--seed", "7"])
    assert (config.train.batch_size, config.train.seed, config.max_norm, config.adam.lr) == (16, 7, 0.5, 1e-5)


def test_a_folder_in_place_of_a_file_is_a_problem(good_flags):
    with pytest.raises(UserError, match="cannot be read"):
        parse_config(SFTConfig, [*good_flags, "@", "model"])


def test_defaults_read_back_the_same(tmp_path):
    write_resolved(SFTConfig(), tmp_path / "new" / "run_config.yaml")
    assert read_back(tmp_path / "new" / "run_config.yaml") == SFTConfig()


def test_what_a_run_of_many_files_has_written_reads_back(tmp_path):
    dataset = ",".join(f"/data/of/the/whole/team/part-{number:05}.parquet" for number in range(1000))
    write_resolved(build(SFTConfig, {"data.dataset": dataset}), tmp_path / "run.yaml")
    assert read_back(tmp_path / "run.yaml").data.dataset == dataset


def test_every_setting_but_secrets_is_written(tmp_path):
    write_resolved(SFTConfig(), tmp_path / "run.yaml")
    written = {given.name for given in read_config_file(str(tmp_path / "run.yaml"))}
    assert written == {row.name for row in settings(SFTConfig).values() if not row.secret}


def test_a_secret_is_not_written(tmp_path):
    config = build(SFTConfig, {"logger.wandb.key": "s3cret", "logger.wandb.name": "run"})
    write_resolved(config, tmp_path / "run.yaml")
    assert "s3cret" not in (tmp_path / "run.yaml").read_text()
    assert read_back(tmp_path / "run.yaml").logger.wandb.name == "run"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://judge/get_reward?token=S", "https://judge/get_reward"),
        ("http://me:S@judge:8000/a,b?x=1,2&t=S", "http://judge:8000/a,b"),
        ("rules.py:score,https://me:S@one/x,https://two/y#S", "rules.py:score,https://one/x,https://two/y"),
        ("HTTPS://me:S@judge/x?token=S,HTTP://me:S@two", "HTTPS://judge/x"),
        ("HTTP://me:S@judge:99999/x?token=S", "HTTP://judge:99999/x"),
        ("rules.py:score", "rules.py:score"),
        ("~/judge", "~/judge"),
    ],
)
def test_what_an_address_holds_of_secrets_is_shown_nowhere(tmp_path, given, shown):
    config = build(SFTConfig, {"eval.prompts_reward": given, "eval.prompts": "~/mine.jsonl", "adam.lr": 0.5})
    write_resolved(config, tmp_path / "run.yaml")
    assert f"prompts_reward: {shown}\n" in (tmp_path / "run.yaml").read_text()
    assert shown_values(config)["eval.prompts_reward"] == shown
    assert changed_settings(config) == {"adam.lr": 0.5}, "whose judge it is, is nobody else's business"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("of m at http://me:p@w@hub/x: no, 'https://hf_x@hub'.", "of m at http://hub/x: no, 'https://hub'."),
        ("http://hub/me@v1 a://b?c=d@e x//y@z s3://", "http://hub/me@v1 a://b?c=d@e x//y@z s3://"),
    ],
)
def test_a_login_in_an_address_is_told_in_no_error(told, shown):
    """Whoever has put it there: libraries quote the addresses that the environment gives them."""
    assert UserError(told, told).problems == [shown, shown]
    assert str(UserError(told)) == first_line_of(OSError(told)) == shown


def test_writing_leaves_nothing_beside_the_file(tmp_path):
    for _ in range(2):
        write_resolved(SFTConfig(), tmp_path / "run.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(
    lambda text: text.lower() not in ("none", "null")
)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    template=_text | st.none(),
    name=_text,
    lr=st.floats(min_value=1e-12, max_value=1e3),
    seed=st.integers(-(2**62), 2**62),
    modules=st.lists(_text, min_size=1, max_size=3),
    packing=st.booleans(),
    minutes=st.floats(min_value=1e-3, max_value=1e6) | st.none(),
)
def test_any_configuration_reads_back_the_same(tmp_path, template, name, lr, seed, modules, packing, minutes):
    config = build(
        SFTConfig,
        {
            "data.input_template": template,
            "logger.wandb.project": name,
            "adam.lr": lr,
            "train.seed": seed,
            "ds.lora.target_modules": tuple(modules),
            "ds.packing_samples": packing,
            "ckpt.save_minutes": minutes,
        },
    )
    write_resolved(config, tmp_path / "run.yaml")
    assert dataclasses.asdict(read_back(tmp_path / "run.yaml")) == dataclasses.asdict(config)
