"""Settings that cannot be: the command line, and files of settings. Most are read in this process."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterable
from unittest import mock

from openrlhf.config import SFTConfig, parse_config
from openrlhf.errors import UserError
from tests.hostile.case import Came, Case
from tests.hostile.workspace import Workspace

DIGITS, LETTERS = "9" * 5000, "x" * 5000
TOO_MANY = "more than 10,000 values"


def parsed(w: Workspace, *words: str) -> Came:
    began_at = time.monotonic()
    try:
        with mock.patch.dict(os.environ, {"WORLD_SIZE": "1"}):
            parse_config(SFTConfig, [*w.words(), *words])
        code, said = 0, "taken"
    except UserError as error:
        code, said = 2, str(error)
    except Exception:  # it is the case's finding
        code, said = 1, traceback.format_exc()
    return Came(code, said, time.monotonic() - began_at)


def flag(*words: str, must_see: str = "it m", name: str | None = None) -> Case:
    """Words that are refused with what is wanted."""
    shown = name or " ".join(map(repr, words))
    return Case(shown, lambda w: parsed(w, *words), (words[0], must_see), in_suite=True)


def file(name: str, text: str | bytes | Iterable[str], *must_see: str, suffix: str = "yaml", in_suite=True) -> Case:
    """A file of settings with that text, or with these lines."""
    content = text if isinstance(text, str | bytes) else "\n".join(text)
    return Case(
        f"{suffix.upper()}: {name}",
        lambda w: parsed(w, "@", str(w.write(f"a.{suffix}", content))),
        (f"a.{suffix}", *must_see),
        in_suite=in_suite,
    )


def levels(first: str, later: str, number: int) -> list[str]:
    """Groups of which each names the one before ten times."""
    return [f"a0: &a0 {first}", *(f"a{n}: &a{n} {later % ', '.join([f'*a{n - 1}'] * 10)}" for n in range(1, number))]


def pipe(w: Workspace) -> Came:
    os.mkfifo(w.folder / "a.yaml")
    return parsed(w, "@", str(w.folder / "a.yaml"))


NUMBERS = (
    flag("--train.batch_size", DIGITS, name="a batch size of 5,000 digits"),
    flag("--train.batch_size", "1e400"),
    flag("--train.batch_size", "-1"),
    flag("--train.batch_size", str(2**63), must_see="at most"),
    flag("--train.seed", DIGITS, name="a seed of 5,000 digits"),
    flag("--adam.lr", "nan"),
    flag("--adam.lr", "1e309"),
    flag("--adam.lr", DIGITS, name="a learning rate of 5,000 digits"),
    flag("--adam.betas", "nan", "0.9"),
    flag("--max_norm", "inf"),
    flag("--ckpt.max_mem", "1e300"),
    flag("--ckpt.save_minutes", "1e300"),
    flag("--train.hang_timeout_minutes", "nan"),
    flag("--ckpt.export_shard_size", "-5GB"),
    flag("--ds.lora.rank", str(2**62), must_see="from 0 to 65536"),
    flag("--ds.ring_attn_size", str(2**62), must_see="does not divide"),
    flag("--ds.zero_stage", "\u0663", name="a digit of another script"),
)
NAMES = (
    flag("--train.batch_size", "\ud800", must_see="no valid text", name="half a surrogate pair"),
    flag("--" + LETTERS, must_see="is unknown", name="a flag of 5,000 letters"),
    flag("--data.dataset", "/dev/null/x.jsonl", must_see="does not exist"),
    Case(
        "a model whose name has 5,000 letters",
        lambda w: parsed(w, "--model.model_name_or_path", LETTERS),
        ("is no name of a file or folder: File name too long",),
        in_suite=True,
    ),
    Case("a loss of 5,000 letters", lambda w: w.run("--train.loss", LETTERS), ("--train.loss",)),
    Case("a function of Python's as the loss", lambda w: w.run("--train.loss", "os:system"), ("is no Objective",)),
    Case("a function as a callback", lambda w: w.run("--train.callbacks", "os.path:join"), ("is no Callback",)),
    Case(
        "a data file whose name has 5,000 letters",
        lambda w: parsed(w, "--data.dataset", f"{LETTERS}.jsonl"),
        ("is no name of a file or folder: File name too long",),
        in_suite=True,
    ),
)
FILES = (
    file("lists of aliases, thirty levels", levels("[x, x]", "[%s]", 30), TOO_MANY),
    file("merged aliases, six levels", levels("{x: 1, y: 2}", "{<<: [%s]}", 6), TOO_MANY),
    file("a list within itself", "a: &a [*a]", TOO_MANY),
    file("a group within itself", "a: &a {b: *a}", TOO_MANY),
    file("5,000 brackets", "a: " + "[" * 5000, "is broken"),
    file("groups 100 deep", (" " * n + "a:" for n in range(100)), "more than 20 deep"),
    file("half a megabyte", "a: 1\n" * 100_000, "more than 131,072 bytes"),
    file("a list of 10,500 values", f"a: [{'1,' * 10_500}]", TOO_MANY),
    file("a key twice", "a: 1\na: 2", "stands there twice"),
    file("an object of Python", "a: !!python/object/apply:os.system ['true']", "is broken"),
    file("Latin-1", "a: \xe9".encode("latin-1"), "cannot be read"),
    file("a zero byte", b"a: \x00", "is broken"),
    file("a number of 5,000 digits", f"train.seed: {DIGITS}", "is broken"),
    file("a number of 12,000 digits by sixties", f"adam.lr: {'1:' * 12_000}1.5", "is broken"),
    file("a hexadecimal number of 30,000 digits", f"train.seed: 0x{'f' * 30_000}", "too many digits"),
    file("a list as a key", "? [a, b]\n: 1", "is broken"),
    file("nothing", "", "holds no settings"),
    file(
        "a name of 16,000 parts", ".".join(["a"] * 16_000) + " = 1", "more than 20 deep", suffix="toml", in_suite=False
    ),
    file("5,000 brackets", "a = " + "[" * 5000, "is broken", suffix="toml"),
    file("a number of 5,000 digits", f"train.seed = {DIGITS}", "is broken", suffix="toml"),
    file("a key twice", "a = 1\na = 2", "is broken", suffix="toml"),
    Case("YAML: a pipe", pipe, ("it is no plain file",), in_suite=True),
    Case("YAML: a device without end", lambda w: parsed(w, "@", "/dev/zero"), ("it is no plain file",), in_suite=True),
)

CASES = (
    Case(
        "--ds.zero_stage 4",
        lambda w: w.run(ds__zero_stage=4),
        must_see=("--ds.zero_stage is '4'",),
        in_suite=True,
    ),
    *NUMBERS,
    *NAMES,
    *FILES,
    Case(
        "the largest numbers that are taken",
        lambda w: w.run(
            *("--train.batch_size", str(2**62), "--train.micro_batch_size", str(2**62), "--train.seed", str(2**62)),
            *("--ckpt.max_num", str(2**62), "--ckpt.save_steps", str(2**62), "--data.max_len", str(2**62)),
            *("--adam.lr", "1e-320", "--max_norm", "1e-300"),
        ),
        must_see=("the model is in",),
        exit_code=0,
    ),
    Case(
        "a run without any mistake (the harness itself)",
        lambda w: w.run(),
        must_see=("the model is in",),
        exit_code=0,
        then=lambda w: () if (w.out / "model.safetensors").is_file() else ("no model was exported",),
        in_suite=True,
    ),
)
