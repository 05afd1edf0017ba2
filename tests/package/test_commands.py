"""`openrlhf COMMAND`: names, help, versions, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import openrlhf.cli.main as entry
from openrlhf import versions
from openrlhf.cli.completion import script_for
from openrlhf.config import GenerateConfig, parse_config


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["openrlhf", *words])
    entry.main()


def completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(repr(word) for word in ("openrlhf", *words))
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _openrlhf; echo "${{COMPREPLY[@]}}"'
    script = script_for("bash", [*entry.commands()])
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_command_is_listed_with_what_it_does(monkeypatch, capsys):
    call(monkeypatch)
    shown = capsys.readouterr().out
    for file in Path(entry.__file__).parent.glob("*.py"):
        if '__name__ == "__main__"' in file.read_text() and file.stem not in ("main", "batch_inference"):
            assert f"  {file.stem.replace('_', '-')} " in shown
    assert all(entry.commands().values())


@pytest.mark.parametrize("name", ["generate", "train-sft", "train_sft"])
def test_a_command_gets_its_flags(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, name, "--help")
    assert left.value.code == 0
    assert f"openrlhf.cli.{name.replace('-', '_')} FLAGS" in capsys.readouterr().out


def test_a_wrong_command_is_told_with_the_right_ones(monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, "tain-sft")
    assert left.value.code == 2
    assert "tain-sft is no command: choose chat, " in capsys.readouterr().err


def test_ranks_are_started_by_deepspeed_with_a_port_of_their_own(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(entry.os, "execv", lambda _, words: started.append(words))
    call(monkeypatch, "--ranks", "2", "train-sft", "--adam.lr", "1")
    words = started[0]
    assert words[words.index("--num_accelerators") + 1] == "2"
    assert int(words[words.index("--master_port") + 1]) > 1023
    assert words[-4:] == ["--module", "openrlhf.cli.train_sft", "--adam.lr", "1"]


def test_versions_are_those_that_are_installed(monkeypatch, capsys):
    import transformers

    call(monkeypatch, "--version")
    assert f"transformers {transformers.__version__}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["train-s"], ["train-sft"]),
        (["train-sft", "--ds.zero"], ["--ds.zero_stage"]),
        (["--ranks", "2", "train-dpo", "--model.bet"], ["--model.beta"]),
        (["inspect-data", "--html"], ["--html"]),
        (["chat", "--chat.sys"], ["--chat.system"]),
    ],
)
def test_the_shell_completes_names(words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize(("found", "is_told"), [("5.18.9", True), ("5.19.0", False), ("5.24.0", False), ("5.25", True)])
def test_a_version_that_was_not_tried_is_told_and_not_refused(monkeypatch, capsys, tmp_path, found, is_told):
    real = versions.version
    monkeypatch.setattr(versions, "version", lambda name: found if name == "transformers" else real(name))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1"}\n')
    flags = ["--model.model_name_or_path", "m", "--generate.engine", "openai", "--generate.url", "http://localhost:1"]
    parse_config(GenerateConfig, [*flags, "--data.dataset", str(tmp_path / "rows.jsonl")])
    assert (f"transformers {found} is installed: this package was tried with" in capsys.readouterr().err) == is_told


def test_a_build_of_torch_for_the_cpu_counts_as_its_version(monkeypatch):
    monkeypatch.setattr(versions, "version", lambda name: {"torch": "2.13.0+cpu"}.get(name, versions.TRIED[name][0]))
    assert not list(versions.untried_versions())
