"""The root of a command is an argument: nothing of the room but the declarations knows a particular one."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator
from typing import ClassVar, get_args

import pytest

from openrlhf.config import as_namespace, check_config, from_namespace, parse_config, write_resolved
from openrlhf.config.kinds import Count, PositiveCount, read_value
from openrlhf.config.roots import ROOTS
from openrlhf.config.schema import Command, Resume, Root, build, groups, setting, settings, synonyms, values_of
from openrlhf.config.synonyms import COMMON_SYNONYMS
from openrlhf.errors import UserError


@dataclasses.dataclass(frozen=True)
class OvenConfig:
    """The oven."""

    degrees: PositiveCount = setting(180, "temperature in degrees Celsius", resume="must_match")
    pin: str | None = setting(None, "number that unlocks the oven", resume="free", secret=True)


@dataclasses.dataclass(frozen=True)
class BreadConfig(Root):
    """Bread."""

    loaves: Count = setting(1, "loaves to bake", resume="free")
    oven: OvenConfig = OvenConfig()


def too_hot(config: BreadConfig, world_size: int) -> Iterator[str]:
    if config.oven.degrees > 100 * world_size + 200:
        yield f"--oven.degrees {config.oven.degrees} burns the bread on {world_size} ranks."


def no_bread(config: BreadConfig) -> Iterator[str]:
    if config.loaves == 0:
        yield "--loaves 0 bakes nothing."


@dataclasses.dataclass(frozen=True)
class BakeConfig(BreadConfig):
    """Bread, baked."""

    command: ClassVar[Command] = Command(
        "Bakes bread.",
        "python -m bakery",
        {**COMMON_SYNONYMS, "temperature": "oven.degrees"},
        (too_hot,),
        (no_bread,),
    )


def problems_of(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_config(BakeConfig, argv)
    return caught.value.problems


def test_flags_of_any_root_are_read():
    config = parse_config(BakeConfig, ["--oven.degrees", "200", "--loaves=3"])
    assert (config.loaves, config.oven.degrees) == (3, 200)


def test_a_synonym_of_a_root_is_read_and_common_ones_without_a_setting_are_unknown():
    assert parse_config(BakeConfig, ["--temperature", "190"]).oven.degrees == 190
    assert list(synonyms(BakeConfig)) == ["temperature"]
    assert "--pretrain is unknown" in problems_of("--pretrain", "model")[0]


def test_an_unknown_flag_of_any_root_is_named_with_the_nearest():
    assert problems_of("--oven.degree", "9") == ["--oven.degree is unknown. Did you mean --oven.degrees?"]


def test_the_checks_of_a_root_are_its_own():
    assert problems_of("--oven.degrees", "900") == ["--oven.degrees 900 burns the bread on 1 ranks."]
    assert check_config(build(BakeConfig, {"oven.degrees": 900}), world_size=9) == []
    assert check_config(build(BreadConfig, {"oven.degrees": 900}), world_size=1) == []


def test_a_notice_is_printed_once_by_the_first_rank(capsys, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        parse_config(BakeConfig, ["--loaves", "0"])
    assert capsys.readouterr().err == "--loaves 0 bakes nothing.\n"


def test_help_of_any_root_shows_its_command_and_settings(capsys):
    with pytest.raises(SystemExit):
        parse_config(BakeConfig, ["--help"])
    shown = capsys.readouterr().out
    for words in ("Bakes bread.", "python -m bakery @ run.toml", "The oven.", "--oven.degrees", "180", "--loaves"):
        assert words in shown
    assert "--model" not in shown


def test_a_written_file_of_any_root_reads_back_the_same(tmp_path):
    config = build(BakeConfig, {"loaves": 2, "oven.degrees": 210, "oven.pin": "1234"})
    write_resolved(config, tmp_path / "bake.yaml")
    text = (tmp_path / "bake.yaml").read_text()
    assert "python -m bakery" in text
    assert "1234" not in text
    back = parse_config(BakeConfig, ["@", str(tmp_path / "bake.yaml")])
    assert back == dataclasses.replace(config, oven=dataclasses.replace(config.oven, pin=None))


def test_a_namespace_of_any_root_goes_back_to_the_same_configuration():
    config = build(BakeConfig, {"loaves": 2, "oven.degrees": 210})
    args = as_namespace(config)
    assert (args.loaves, args.oven.degrees, args.temperature, args.oven.pin) == (2, 210, 210, None)
    assert from_namespace(BakeConfig, args) == config
    assert from_namespace(BakeConfig, Namespace(temperature=190)).oven.degrees == 190


def test_a_setting_without_a_rule_for_a_resume_cannot_be_declared():
    with pytest.raises(TypeError, match="resume"):
        setting(1, "a number")  # type: ignore[call-arg]


@pytest.mark.parametrize("root", [*ROOTS, BakeConfig])
class TestEveryRoot:
    def test_every_setting_says_what_a_resume_does_with_it(self, root):
        assert {row.resume for row in settings(root).values()} <= set(get_args(Resume))

    def test_every_default_is_a_value_that_its_own_check_takes(self, root):
        for row in settings(root).values():
            assert read_value(row.kind, row.default) == row.default, row.name

    def test_every_setting_and_group_has_help(self, root):
        assert [row.name for row in settings(root).values() if len(row.help) < 5] == []
        assert [prefix for prefix, about in groups(root).items() if not about] == []

    def test_values_go_into_a_configuration_and_back(self, root):
        config = build(root, {})
        assert build(root, values_of(config)) == config == root()

    def test_the_command_says_how_it_is_called(self, root):
        assert root.command.title
        assert root.command.usage
