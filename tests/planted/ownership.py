"""Bugs of who owns what: folders, the user's own files, the run that a model is of."""

from __future__ import annotations

from tests.planted.bug import Bug

_HOSTILE = ("tests/hostile/test_hostile.py::test_the_user_sees_what_must_be_seen",)

BUGS = [
    Bug(
        "lease_is_not_looked_at",
        "two runs write into one folder",
        "checkpoint/lease.py",
        "        except FileExistsError:\n            return False\n",
        "        except FileExistsError:\n            return True\n",
        _HOSTILE,
    ),
    Bug(
        "dead_owner_lives",
        "a run that was killed cannot be started again at once",
        "checkpoint/lease.py",
        "return self.is_near and start_of(self.pid) != self.started",
        "return False",
        _HOSTILE,
    ),
    Bug(
        "rotation_removes_a_users_files",
        "what a user puts into a checkpoint is removed with it",
        "checkpoint/store.py",
        "if folder.exists() and not remove_listed(folder):",
        "if folder.exists() and (shutil.rmtree(folder) or False):",
        _HOSTILE,
    ),
    Bug(
        "another_runs_model_is_replaced",
        "a second run's export deletes the first one's model",
        "checkpoint/export.py",
        "if name not in own or (folder / name).is_dir():",
        "if (folder / name).is_dir():",
        _HOSTILE,
    ),
    Bug(
        "earlier_metrics_are_lost",
        "the third fresh start removes the first one's metrics",
        "atomic_file.py",
        "next(free for name in names if not os.path.lexists(free := path.with_name(name)))",
        "next(path.with_name(name) for name in names)",
        _HOSTILE,
    ),
    Bug(
        "damaged_export_counts_as_whole",
        "a model with a flipped bit passes as the finished run's",
        "checkpoint/export.py",
        "== optimizer_step and not verify(folder)",
        "== optimizer_step",
        _HOSTILE,
    ),
    Bug(
        "weights_are_not_looked_at",
        "a model of nan is exported as done",
        "trainer/callbacks/nonfinite_guard.py",
        "        if found:\n            raise NonFiniteSteps(",
        "        if found and False:\n            raise NonFiniteSteps(",
        _HOSTILE,
    ),
    Bug(
        "full_log_disk_ends_the_run",
        "a log on a full disk costs the training",
        "cli/standard_streams.py",
        "except (OSError, ValueError):  # a full disk; a stream that was closed",
        "except ValueError:",
        _HOSTILE,
    ),
    Bug(
        "a_copied_checkpoint_counts",
        "a checkpoint that was copied over another step's is gone on from",
        "checkpoint/store.py",
        "if step in (None, self.step_of(path.name)):",
        "if True:",
        ("tests/checkpoint/test_store.py::test_a_checkpoint_copied_over_another_is_named_and_the_one_before_is_used",),
    ),
    Bug(
        "keys_in_the_list_of_processes",
        "everybody on the machine can read the key of a run",
        "cli/process_list.py",
        'ctypes.memset(start + found.start(), ord("x"), len(found[0]))',
        'ctypes.memset(start + found.start(), ord("x"), 0)',
        ("tests/runs/test_process_list.py::test_a_key_is_in_no_argument_list",),
    ),
    Bug(
        "report_over_the_data",
        "inspect_data --html replaces the data set",
        "config/outputs.py",
        "(path.exists() and not _is_report(path))",
        "(path.exists() and False)",
        _HOSTILE,
    ),
    Bug(
        "broken_yaml_shows_its_key",
        "a key stands in the message about a broken file",
        "config/sources.py",
        'is broken: {reason}{place}") from None',
        'is broken: {error}") from None',
        _HOSTILE,
    ),
    Bug(
        "orphans_train_on",
        "the ranks of a launcher that was killed train on beside the run that is started next",
        "watchdog/launcher.py",
        "    while os.getppid() == launcher:\n",
        "    while True:\n",
        ("tests/faults/test_launchers.py::test_ranks_end_with_a_launcher_that_was_killed_and_the_run_goes_on",),
    ),
    Bug(
        "a_lost_rank_is_called_a_bad_model",
        "ranks that load a model together blame its folder when one of them is killed",
        "models/loading.py",
        "if is_lost_rank(error):",
        "if False:",
        ("tests/models/test_loading.py",),
    ),
    Bug(
        "an_exported_run_is_exported_again",
        "a run whose last checkpoint found no room writes its model anew at each start",
        "run/training_run.py",
        "        if not is_exported:\n            return False",
        "        if not (is_exported and self._found.progress.finished):\n            return False",
        (
            "tests/faults/test_full_disk.py::test_a_run_whose_last_checkpoint_found_no_room_has_finished_with_its_export",
        ),
    ),
]
