"""A key on the command line is soon gone from the argument list of the process, and of those that it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from openrlhf.cli.process_list import hide_from_process_list

KEY = "0123456789abcdef0123456789abcdef01234567"
COMMAND = """
import os, sys
from openrlhf.cli.entry import run_command

def show(words):
    assert KEY in " ".join(words)
    if os.fork():
        os.wait()
    print(open("/proc/self/cmdline").read().replace(chr(0), " ").partition("run_command(show)")[2], flush=True)

KEY = sys.stdin.read()
run_command(show)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the arguments elsewhere")
@pytest.mark.parametrize("words", [["--logger.wandb.key", KEY], [f"--logger.wandb.key={KEY}"], ["--use_wandb", KEY]])
def test_a_key_is_in_no_argument_list(words: list[str]):
    command = [sys.executable, "-c", COMMAND, *words, "--train.seed", "1"]
    said = subprocess.run(command, input=KEY, text=True, capture_output=True, check=True).stdout
    assert said.count("xxxx --train.seed 1") == 2
    assert KEY not in said


def test_a_key_of_bytes_that_are_no_text_ends_no_run():
    hide_from_process_list(["key\udcff"])
