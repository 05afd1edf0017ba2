"""Keys and tokens of command lines and addresses: what is shown of them."""

from __future__ import annotations

import pytest

from openrlhf.config.disk import program, without_secrets
from openrlhf.config.sources import read_argv, secrets_in, with_secrets_hidden


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("vllm serve m --api-key 'SE CRET' --port 8", "vllm serve m --api-key *** --port 8"),
        ("env VLLM_API_KEY=SECRET x --api-key S1 -S2 --n 1", "env VLLM_API_KEY=*** x --api-key *** *** --n 1"),
        ("x --API-KEY SECRET --hf-token=SECRET", "x --API-KEY *** --hf-token=***"),
        ("x --admin-api-key \\\n SECRET", "x --admin-api-key *** ***"),
        ("x '--ssl-keyfile-password=SE CRET' m", "x --ssl-keyfile-password=*** m"),
        ("sh -c 'x --api-key SECRET --port 8'", "sh -c 'x --api-key *** --port 8'"),
        ("x --max-tokens 100 --tokenizer m k=v 'a  b'", "x --max-tokens 100 --tokenizer m k=v 'a  b'"),
    ],
)
def test_the_keys_of_a_command_are_hidden_however_it_gives_them(command, shown):
    assert without_secrets(command) == shown


@pytest.mark.parametrize("command", ["API_KEY=SECRET x", "it's --api-key 'SECRET'"])
def test_a_key_of_a_command_that_is_none_is_not_told(command):
    (said,) = program("--flag", command, "x")
    assert "SECRET" not in said


@pytest.mark.parametrize("key", ["SECRET", "-SECRET", "-9SECRET"])
def test_a_key_is_all_words_up_to_the_next_flag(key):
    words = ["--logger.wandb.key", key, "SECRET2", "--train.seed", "-1", "-x", "@run.toml"]
    hidden = ["[hidden]", "[hidden]"]
    assert with_secrets_hidden(words) == [words[0], *hidden, *words[3:]]
    assert list(secrets_in(words)) == [key, "SECRET2"]
    (given, *_), _ = read_argv([words[0], key, *words[3:6]])
    assert (given.name, given.value) == ("logger.wandb.key", key)
