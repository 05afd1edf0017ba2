"""Bugs of what one process knows of others, of a full disk, and of the process list."""

from __future__ import annotations

from tests.planted.bug import Bug

_MAKER = "tests/datasets/test_cache.py::test_a_maker_is_dead_only_where_its_process_can_be_seen_to_be"

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
]
