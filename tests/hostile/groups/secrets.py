"""Keys: that of W&B works on the command line, and is told to be unsafe; none stands in a file or message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.hostile.case import Came, Case
from tests.hostile.groups.ownership import training
from tests.hostile.hooks import be_quick_about_leases
from tests.hostile.workspace import Workspace

KEY = "0123456789abcdef0123456789abcdef01234567"
PART_OF_KEY = KEY[:16]  # a message may cut a long line
OFFLINE = dict(env={"WANDB_MODE": "offline"})
UNSAFE = "the key of --logger.wandb.key can be read by others"


def key_is_in_no_file(w: Workspace) -> Iterator[str]:
    for path in w.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("mine") and KEY.encode() in path.read_bytes():
            yield f"the key stands in {path.relative_to(w.folder)}"


def while_training(w: Workspace) -> Came:
    """A second run is told who holds the folder, and the first one's command line holds the key."""
    with training(w, logger__wandb__key=KEY):
        leases = [path.read_text() for path in w.folder.rglob(".owner.json")]
        came = w.run(before=be_quick_about_leases)
    return Came(came.exit_code, came.said + "".join(leases), came.seconds)


def settings_file(w: Workspace, name: str, text: str) -> Came:
    w.write(f"mine.{name}", text)
    return w.run("@", f"mine.{name}", **OFFLINE)


def _hidden(name: str, do: Any, *words: str, exit_code: int = 2, in_suite: bool = False) -> Case:
    return Case(
        name, do, words, exit_code=exit_code, must_not_see=(PART_OF_KEY,), then=key_is_in_no_file, in_suite=in_suite
    )


CASES = (
    _hidden(
        "--logger.wandb.key K, with W&B offline",
        lambda w: w.run("--logger.wandb.enable", "--logger.wandb.key", KEY, **OFFLINE),
        UNSAFE,
        "the model is in",
        exit_code=0,
    ),
    _hidden(
        "--logger.wandb.key=K, with W&B offline",
        lambda w: w.run("--logger.wandb.enable", f"--logger.wandb.key={KEY}", **OFFLINE),
        UNSAFE,
        exit_code=0,
    ),
    _hidden("--use_wandb K, with W&B offline", lambda w: w.run("--use_wandb", KEY, **OFFLINE), UNSAFE, exit_code=0),
    _hidden("--logger.wandb.key K without W&B", lambda w: w.run("--logger.wandb.key", KEY), UNSAFE, exit_code=0),
    _hidden(
        "a key, with checkpoints and TensorBoard",
        lambda w: w.run("--logger.wandb.key", KEY, ckpt__save_steps=1, logger__tensorboard_dir="tb"),
        UNSAFE,
        exit_code=0,
    ),
    _hidden(
        "a key, and a second run in the same folder", while_training, "belongs to a run that is still", in_suite=True
    ),
    _hidden("a key with a word too much", lambda w: w.run("--logger.wandb.key", KEY, "more"), "--logger.wandb.key"),
    _hidden(
        "a misspelt flag of the key", lambda w: w.run("--logger.wandb.kay", KEY), "Did you mean --logger.wandb.key?"
    ),
    _hidden(
        "a key, and another flag is wrong",
        lambda w: w.run("--logger.wandb.key", KEY, ds__zero_stage=4),
        "--ds.zero_stage",
    ),
    _hidden(
        "a key, and a row is bad",
        lambda w: w.run("--logger.wandb.key", KEY, data__dataset=w.write("rows.jsonl", "{")),
        "rows.jsonl:1",
    ),
    _hidden(
        "a key, and a callback raises",
        lambda w: w.run("--logger.wandb.key", KEY, train__callbacks="tests.hostile.hooks:Raises"),
        "the callback's own fault",
        exit_code=3,
    ),
    _hidden(
        "a key in a YAML file",
        lambda w: settings_file(w, "yaml", f"logger:\n  wandb:\n    key: {KEY}\n"),
        "the model is in",
        exit_code=0,
    ),
    _hidden(
        "a key in a line of YAML that is broken",
        lambda w: settings_file(w, "yaml", f"logger: {{wandb: {{key: [{KEY}\n"),
        "is broken",
    ),
    _hidden(
        "a key in a line of YAML with a tab",
        lambda w: settings_file(w, "yaml", f"logger:\n\twandb: {KEY}: {KEY}\n"),
        "is broken",
        in_suite=True,
    ),
    _hidden(
        "a key in a line of TOML that is broken",
        lambda w: settings_file(w, "toml", f"logger.wandb.key = {KEY}x\n"),
        "broken",
    ),
    _hidden(
        "a key that is a list in YAML",
        lambda w: settings_file(w, "yaml", f"logger:\n  wandb:\n    key: [{KEY}]\n"),
        "logger.wandb.key",
    ),
    _hidden(
        "a token of the hub in a recipe of TRL's",
        lambda w: settings_file(w, "yaml", f"hub_token: {KEY}\n"),
        "hub_token [hidden]",
        "the model is in",
        exit_code=0,
    ),
    _hidden(
        "a token of the hub that is a list in a recipe of TRL's",
        lambda w: settings_file(w, "yaml", f"hub_token: [{KEY}]\n"),
        "hub_token is [hidden]; it must be",
    ),
    _hidden(
        "a key under a misspelt name in YAML",
        lambda w: settings_file(w, "yaml", f"logger:\n  wandb:\n    kay: {KEY}\n"),
        "Did you mean",
    ),
)
