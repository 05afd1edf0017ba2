"""Bugs of what one process knows of others, of a full disk, and of the process list."""

from __future__ import annotations

from tests.planted.bug import Bug

_MAKER = "tests/datasets/test_cache.py::test_a_maker_is_dead_only_where_its_process_can_be_seen_to_be"
_KEYS = "tests/config/test_secrets.py::test_the_keys_of_a_command_are_hidden_however_it_gives_them"
_TOLD = "tests/rejection/test_score.py::test_bad_input_is_told_in_words"

BUGS = [
    Bug(
        "a_maker_in_another_container_is_dead",
        "two containers prepare the same data at the same time, and one takes the other's lock away",
        "processes.py",
        "return machine == _machine_in_a_word() and pid.isdigit() and",
        "return pid.isdigit() and",
        (_MAKER,),
    ),
    Bug(
        "a_number_names_a_process",
        "where the number of a killed maker has come again, everybody waits for a process that makes nothing",
        "processes.py",
        "start_of(int(pid)) != start",
        "not start_of(int(pid))",
        (_MAKER,),
    ),
    Bug(
        "a_full_disk_leaves_an_owner",
        "after a start on a full disk the next one waits for the end of a run that never began",
        "checkpoint/lease.py",
        "            self._path.unlink(missing_ok=True)\n            raise\n",
        "            raise\n",
        ("tests/checkpoint/test_lease.py::test_a_full_disk_leaves_no_owner_that_nobody_knows",),
    ),
    Bug(
        "an_owner_is_half_written",
        "on a full disk a run starts as the owner of a folder, and no other start can read whose it is",
        "checkpoint/lease.py",
        "if os.write(file, content) < len(content):",
        "if os.write(file, content) < 0:",
        ("tests/checkpoint/test_lease.py::test_a_full_disk_leaves_no_owner_that_nobody_knows",),
    ),
    Bug(
        "a_key_that_is_no_text_ends_the_run",
        "a command whose key holds a byte that is no UTF-8 ends with a UnicodeEncodeError",
        "cli/process_list.py",
        "re.escape(os.fsencode(secret))",
        "re.escape(secret.encode())",
        ("tests/runs/test_process_list.py::test_a_key_of_bytes_that_are_no_text_ends_no_run",),
    ),
    Bug(
        "an_empty_variable_is_a_folder",
        "with an empty OPENRLHF_CACHE prepared data land in the folder that the run was started in",
        "datasets/cache.py",
        'os.environ.get("OPENRLHF_CACHE") or user_cache / "openrlhf" / "datasets"',
        'os.environ.get("OPENRLHF_CACHE", user_cache / "openrlhf" / "datasets")',
        ("tests/datasets/test_cache.py::test_an_empty_variable_names_no_folder",),
    ),
    Bug(
        "the_home_of_nobody_is_a_traceback",
        "a path of ~name without such a user ends with a RuntimeError",
        "config/disk.py",
        "    return Path(os.path.expanduser(name))\n",
        "    return Path(name).expanduser()\n",
        (
            "tests/config/test_checks.py::test_the_home_of_nobody_is_words",
            "tests/config/test_checks.py::test_a_file_of_settings_of_nobody_is_words",
        ),
    ),
    Bug(
        "a_folder_named_for_nobody",
        "an output in the home of a user who is not there is written into the working folder",
        "config/outputs.py",
        'if str(local_path(name)).startswith("~"):',
        "if False:",
        ("tests/config/test_checks.py::test_the_home_of_nobody_is_words",),
    ),
    Bug(
        "keys_of_a_command_are_shown",
        "a key that the server's command holds stands in run_config.yaml and in messages",
        "config/disk.py",
        'is_key = sounds_secret and not equals and name.startswith("-")',
        "is_key = sounds_secret and not name",
        (_KEYS,),
    ),
    Bug(
        "a_commands_variable_is_shown",
        "the key of `env VLLM_API_KEY=…` in the server's command stands in run_config.yaml",
        "config/disk.py",
        "        if sounds_secret and equals:\n",
        '        if sounds_secret and equals and name.startswith("-"):\n',
        (_KEYS,),
    ),
    Bug(
        "a_broken_command_is_told_with_its_key",
        "a command with a quote too many is printed with its key",
        "config/disk.py",
        'f"{flag} is no command line: {error}."',
        'f"{flag} {without_secrets(command)} is no command line: {error}."',
        ("tests/config/test_secrets.py::test_a_key_of_a_command_that_is_none_is_not_told",),
    ),
    Bug(
        "a_key_with_a_dash_is_a_flag",
        "a W&B key that begins with a dash is printed as an unknown flag",
        "config/sources.py",
        "_FLAG_BEHIND_A_SECRET if _is_secret(flag) else _FLAG",
        "_FLAG",
        ("tests/config/test_secrets.py::test_a_key_is_all_words_up_to_the_next_flag",),
    ),
    Bug(
        "the_login_of_an_address_is_shown",
        "the login of a judge's address stands in run_config.yaml",
        "config/disk.py",
        'return _without_keys(_QUERY.sub(r"\\1", without_logins(text)))',
        'return _without_keys(_QUERY.sub(r"\\1", text))',
        ("tests/config/test_files.py::test_what_an_address_holds_of_secrets_is_shown_nowhere",),
    ),
    Bug(
        "an_address_in_capitals_is_none",
        "of the reward server HTTP://… it is said that it is no reward",
        "config/disk.py",
        'return name.lower().startswith(("http://", "https://"))',
        'return name.startswith(("http://", "https://"))',
        (_TOLD,),
    ),
    Bug(
        "a_mistyped_address_is_told_with_its_token",
        "the token of a reward server whose port is mistyped is printed",
        "config/select_settings.py",
        "            said = without_secrets(name)\n",
        "            said = name\n",
        (_TOLD,),
    ),
    Bug(
        "what_is_no_reward_is_told_with_its_token",
        "the token of a reward server whose address lacks a slash is printed",
        "rejection/rewards/find.py",
        "{without_secrets(name)} is no reward",
        "{name} is no reward",
        (_TOLD,),
    ),
    Bug(
        "a_mistyped_address_is_written_with_its_token",
        "the token of a judge whose port is mistyped stands in run_config.yaml",
        "config/schema.py",
        "any(map(begins_as_address, parts_of(value)))",
        'any(begins_as_address(part) and ":99" not in part for part in parts_of(value))',
        ("tests/config/test_files.py::test_what_an_address_holds_of_secrets_is_shown_nowhere",),
    ),
    Bug(
        "processes_that_tokenize_outlive_a_kill",
        "a preparation that is killed leaves its worker processes, and their memory, for ever",
        "datasets/workers.py",
        "    leave_with(parent)\n",
        "",
        ("tests/datasets/test_progress.py::test_the_processes_that_tokenize_end_with_the_one_that_started_them",),
    ),
]
