"""Bugs of what is read from elsewhere: data, templates, models, other ranks."""

from __future__ import annotations

from tests.planted.bug import Bug

_SEEN = "tests/hostile/test_hostile.py::test_the_user_sees_what_must_be_seen"
_RANKS = "tests/strategy/test_rank_facts.py::test_a_rank_that_differs_is_named"
_WEIGHTS = "tests/models/test_weights_check.py::test_a_wrong_weight_is_named"

BUGS = [
    Bug(
        "control_tokens_of_rows_are_real",
        "a user's text ends its own turn and speaks for the assistant",
        "datasets/tokenization/encoder.py",
        'return bool(found) and choice == "text"',
        "return False",
        (f"{_SEEN}[inputs: control tokens in a message are text]",),
    ),
    Bug(
        "two_keys_of_one_name",
        "the later of two answers is trained",
        "datasets/json_text.py",
        "if len(found) == len(pairs):",
        "if True:",
        (f"{_SEEN}[inputs: a key twice]",),
    ),
    Bug(
        "any_value_of_train",
        "a message with train: 0 is trained",
        "datasets/formats/chat.py",
        "if train is not None and not isinstance(train, bool):",
        "if False:",
        (f"{_SEEN}[inputs: train: 0]",),
    ),
    Bug(
        "unknown_roles_reach_the_template",
        "a message of a misspelt role is printed as it is, or dropped",
        "datasets/formats/chat.py",
        "if role not in ROLES:",
        "if not role:",
        (f"{_SEEN}[inputs: an unknown role]",),
    ),
    Bug(
        "lost_tool_calls",
        "the model learns to say nothing where it should call a tool",
        "datasets/tokenization/unprinted.py",
        "if number not in printed:",
        "if False:",
        (f"{_SEEN}[inputs: a lost tool call]",),
    ),
    Bug(
        "no_step_limit",
        "a template from elsewhere never ends",
        "datasets/tokenization/bounded_jinja.py",
        "MAX_STEPS = 1_000_000\n",
        "MAX_STEPS = 1_000_000_000\n",
        (f"{_SEEN}[inputs: endless loops]",),
    ),
    Bug(
        "skipped_members_untold",
        "half of a folder is not trained on, without a word",
        "datasets/prepare.py",
        "report.notes += filter(None, map(_skipped_members, sources))",
        "report.notes += []",
        (f"{_SEEN}[inputs: a folder with a pipe]",),
    ),
    Bug(
        "prepared_data_unchecked",
        "a flipped bit is trained on",
        "datasets/prepared.py",
        'if is_read and _damaged_part(np.memmap(folder / name, mode="r"), parts) is not None:',
        "if False:",
        (f"{_SEEN}[inputs: one bit of samples.arrow flipped]",),
    ),
    Bug(
        "time_that_can_be_set_back",
        "edited data are not prepared anew",
        "datasets/sources/tables.py",
        "|{stat.st_ino}|{stat.st_ctime_ns}",
        "|{stat.st_ino}",
        (f"{_SEEN}[inputs: data edited with size and time kept]",),
    ),
    Bug(
        "leftovers_of_living_preparations_removed",
        "a preparation beside loses its folder",
        "datasets/cache.py",
        'if _owner_is_gone(f"{host} {pid}") if is_ours else',
        "if True if is_ours else",
        (f"{_SEEN}[inputs: folders of killed preparations]",),
    ),
    Bug(
        "token_ids_outside",
        "a GPU aborts with a device assert",
        "datasets/tokenization/encoder.py",
        "if not 0 <= one < self._num_ids), None):",
        "if False), None):",
        (f"{_SEEN}[inputs: the token id -1]",),
    ),
    Bug(
        "settings_of_ranks_not_compared",
        "one rank trains in another order",
        "strategy/strategy.py",
        "        rank_facts.check_strategy(self)\n",
        "",
        (_RANKS,),
    ),
    Bug(
        "missing_weights_pass",
        "a weight that is missing is random",
        "models/weights_check.py",
        'sorted(info["missing_keys"])',
        "[]",
        (f"{_WEIGHTS}[missing]",),
    ),
    Bug(
        "nan_in_the_base_model",
        "a run trains on weights that are no numbers",
        "models/weights_check.py",
        "if is_doubtful and not torch.isfinite(values).all():",
        "if False:",
        (f"{_WEIGHTS}[nan]",),
    ),
    Bug(
        "files_copied_into_a_checkpoint",
        "states of another step are loaded",
        "checkpoint/manifest.py",
        "return [folder / name for name in names if fnmatchcase(name, pattern)]",
        "return sorted(folder.rglob(pattern))",
        ("tests/checkpoint/test_manifest.py::test_what_was_copied_in_is_not_among_the_listed_files",),
    ),
]
