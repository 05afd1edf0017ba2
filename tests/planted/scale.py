"""Bugs of what grows: windows of a million units, saves and heartbeats of thousands of ranks, host memory."""

from __future__ import annotations

from tests.planted.bug import Bug

_LAYOUT = "tests/batching/test_layout.py"
_CHECKPOINTER = "tests/checkpoint/test_checkpointer.py"
_MEMORY = "tests/checkpoint/test_host_memory.py"
_BACKGROUND = "tests/checkpoint/test_background.py"
_HEARTBEATS = "tests/watchdog/test_heartbeats.py"
_PINNED = "tests/checkpoint/test_host_buffer.py"
_ORDER = "tests/batching/test_order_and_schedule.py"
_LAUNCHERS = "tests/cuda/test_launchers.py"
_DEVICES = "tests/cuda/test_devices.py"

BUGS = [
    Bug(
        "fuller_bins_filled_first",
        "after an upgrade a run's micro-batches are others, and ranks wait for each other longer",
        "batching/layout.py",
        "keys = np.sort(np.concatenate([filled[:num_units], keys[num_units:]]))",
        "keys = np.concatenate([keys[num_units:], np.sort(filled[:num_units])])",
        (f"{_LAYOUT}::test_a_large_windows_layout_is_that_of_the_plain_way",),
    ),
    Bug(
        "units_placed_a_few_at_a_time",
        "a step of a million units waits for its layout",
        "batching/layout.py",
        "keys[: len(bin_of) - begin] + lengths_tokens[begin : begin + num_bins]",
        "keys[: min(20, len(bin_of) - begin)] + lengths_tokens[begin : begin + 20]",
        (f"{_LAYOUT}::test_a_window_of_very_many_units_costs_little",),
    ),
    Bug(
        "values_outside_walked_once",
        "a large window holds rows that do not exist",
        "batching/schedule.py",
        "outside = outside[walked >= num_values]",
        "outside = outside[:0]",
        (f"{_ORDER}::test_the_order_is_that_of_the_plain_way[40000-1073741825]",),
    ),
    Bug(
        "export_along_the_way_not_announced",
        "with --ckpt.save_hf an export of ten minutes ends the job",
        "trainer/callbacks/saving.py",
        "            if self._exporter is not None:\n                exported =",
        "        if self._exporter is not None:\n                exported =",
        ("tests/runs/test_long_work.py::test_every_way_of_writing_is_announced_as_long",),
    ),
    Bug(
        "memory_of_a_machine_not_asked_for",
        "a save takes memory that is not there, and the job is killed hours in",
        "checkpoint/checkpointer.py",
        "notices = self._ask_for_memory(size_bytes) if self.in_background else ()",
        "notices: tuple[str, ...] = ()",
        (f"{_CHECKPOINTER}::test_a_machine_without_memory_for_copies_writes_while_training_waits_and_says_so_once",),
    ),
    Bug(
        "each_rank_asks_for_itself",
        "eight ranks of a machine take eight times the memory that is there",
        "checkpoint/host_memory.py",
        "asked = sum(one.bytes_asked for one in here)",
        "asked = max(one.bytes_asked for one in here)",
        (f"{_MEMORY}::test_the_ranks_of_a_machine_ask_together",),
    ),
    Bug(
        "groups_above_not_looked_at",
        "under SLURM the limit of the job is not seen, only that of the step, which has none",
        "control_groups.py",
        "            if folder == mounted:\n                break\n",
        "            break\n",
        (f"{_MEMORY}::test_a_group_above_limits_those_below",),
    ),
    Bug(
        "pinned_memory_freed_as_it_is",
        "after a save of another size the GPU writes to memory that belongs to others",
        "checkpoint/host_buffer.py",
        "            self._unpin()",
        "            pass",
        (f"{_PINNED}::test_memory_for_a_gpus_tensors_is_pinned_once_and_let_go_before_it_is_freed",),
    ),
    Bug(
        "missing_reports_opened_one_by_one",
        "while thousands of ranks write, a thread of rank 0 opens files that are not there, and training is slow",
        "checkpoint/background.py",
        "arrived = [rank_of[name] for name in os.listdir(folder) if name in rank_of]",
        "arrived = list(rank_of.values())",
        (f"{_BACKGROUND}::test_waiting_for_many_ranks_is_looking_at_one_folder",),
    ),
    Bug(
        "heartbeats_of_all_ranks_every_second",
        "at thousands of ranks a tenth of rank 0's processor time reads heartbeats",
        "watchdog/watchdog.py",
        "max(1, world_size / RANKS_A_SECOND)",
        "max(1, 0 / RANKS_A_SECOND)",
        (f"{_HEARTBEATS}::test_rank_0_hears_a_bounded_number_a_second[4096-600-4]",),
    ),
    Bug(
        "a_failure_waits_for_the_heartbeat",
        "a rank of thousands that fails is said to be gone without a word: its error comes too late",
        "watchdog/watchdog.py",
        " and self._own_failure is None:",
        ":",
        (f"{_HEARTBEATS}::test_a_rank_that_fails_does_not_wait_for_its_next_heartbeat",),
    ),
    Bug(
        "ranks_welcomed_one_after_the_other",
        "the start of thousands of ranks takes minutes after a restart",
        "engine/launch.py",
        "        for rank in missing.copy():\n",
        "        for rank in missing[:1]:\n",
        ("tests/engine/test_launch.py::test_rank_0_waits_for_all_ranks_at_once",),
    ),
    Bug(
        "columns_forgotten",
        "of hundreds of ranks each hears of its own row alone, and they do not stop or save together",
        "parallel/collectives.py",
        "return _reduce(_reduce(tensor, operation, group.row), operation, group.column)",
        "return _reduce(tensor, operation, group.row)",
        ("tests/parallel/test_collectives.py::test_a_grid_of_ranks_hears_of_all_of_them",),
    ),
    Bug(
        "open_files_not_allowed",
        "a job of more than 1,024 ranks does not start: too many open files",
        "watchdog/connections.py",
        "soft < wanted:",
        "soft > wanted:",
        ("tests/watchdog/test_connections.py::test_rank_0_of_thousands_may_open_so_many_connections",),
    ),
    Bug(
        "pinned_memory_outlives_its_buffer",
        "a script's second model is saved with the first one's bytes",
        "checkpoint/host_buffer.py",
        "            self._unpin = weakref.finalize(self, torch.cuda.cudart().cudaHostUnregister, place)\n"
        "            self._unpin.atexit = False  # the process gives all of it back\n",
        "",
        (f"{_PINNED}::test_memory_for_a_gpus_tensors_is_pinned_once_and_let_go_before_it_is_freed",),
    ),
    Bug(
        "the_ranks_of_a_job_are_taken_to_be_here",
        "a pod of a job of 64 has a 64th of its memory, and a run that fits is refused",
        "engine/launchers.py",
        "    if not says_local_ranks(environ):\n        raise",
        "    if False:\n        raise",
        ("tests/engine/test_launch.py::test_a_rank_that_does_not_say_how_many_are_here_takes_no_machine_for_granted",),
    ),
    Bug(
        "a_rank_set_by_hand_hides_what_srun_says",
        "a script that sets RANK from srun's variables is refused, though srun says how many ranks a machine has",
        "engine/launchers.py",
        "        return _local_world_size_of_rank(environ)\n",
        "        return {}\n",
        (f"{_LAUNCHERS}::test_a_task_is_the_rank_that_its_launcher_says",),
    ),
    Bug(
        "jsrun_is_told_of_mpirun",
        "a user of jsrun is advised flags that jsrun does not have",
        "engine/launchers.py",
        ' if launcher.name == "mpirun" else ""',
        "",
        (f"{_LAUNCHERS}::test_ranks_that_cannot_find_rank_0_are_told_what_to_set",),
    ),
    Bug(
        "tasks_of_flux_take_a_machines_count_from_slurm",
        "Flux inside SLURM: each rank takes another number of ranks to be beside it",
        "engine/launchers.py",
        'num_machines=("FLUX_JOB_NNODES",)',
        "num_machines=()",
        (f"{_LAUNCHERS}::test_a_task_is_the_rank_that_its_launcher_says",),
    ),
    Bug(
        "a_lone_process_among_machines_is_silent",
        "each machine of a Kubeflow job trains a run of its own, and nobody is told",
        "engine/launchers.py",
        "for name, speaks in signs.items() if speaks",
        "for name, speaks in signs.items() if False",
        ("tests/cuda/test_joining.py::test_a_process_that_is_alone_among_others_says_so",),
    ),
    Bug(
        "numbers_of_launchers_are_believed",
        "SLURM_CPUS_PER_TASK=4,4 ends a run with a traceback",
        "engine/launchers.py",
        "        if not value.isdecimal() or",
        "        if False and",
        (f"{_LAUNCHERS}::test_what_a_launcher_says_and_cannot_be_is_told",),
    ),
    Bug(
        "quotas_of_containers_are_not_read",
        "in a container of four cores on a machine of 64, ranks start 64 threads that the kernel holds back",
        "engine/launch.py",
        "        num_cores = min(num_cores, max(1, int(allowed)))\n",
        "        pass\n",
        ("tests/cuda/test_joining.py::test_ranks_share_what_a_containers_quota_leaves",),
    ),
    Bug(
        "quotas_of_the_first_version_are_not_read",
        "on a machine with the first version of control groups a container's quota is not seen",
        "control_groups.py",
        "if controller in controllers.split(",
        "if False and controller in controllers.split(",
        ("tests/test_control_groups.py::test_the_least_quota_counts",),
    ),
    Bug(
        "a_torch_for_amd_is_taken_for_nvidias",
        "on AMD GPUs a run is told to install the CUDA None toolkit, and takes kernels of Hopper",
        "engine/devices.py",
        "    if torch.version.hip and not",
        "    if False and not",
        (f"{_DEVICES}::test_a_torch_for_amd_is_refused_and_trains_on_the_cpu_where_that_is_asked_for",),
    ),
    Bug(
        "the_gpu_of_wsl_is_not_seen",
        "under WSL 2 a run trains on the CPU without a word",
        "engine/devices.py",
        "    if _DRIVER_OF_WSL.exists():",
        "    if False:",
        (f"{_DEVICES}::test_a_gpu_machine_does_not_train_on_its_cpu_without_a_word",),
    ),
    Bug(
        "other_makers_gpus_are_left_in_silence",
        "on a machine with an AMD GPU a run trains on the CPU without a word",
        "engine/devices.py",
        "        _tell_of_gpus_of_others()\n",
        "",
        (f"{_DEVICES}::test_a_gpu_of_another_maker_is_told_of",),
    ),
]
