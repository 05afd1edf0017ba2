"""Bugs of a machine with GPUs and of a launch, which tests/cuda/ finds without either."""

from __future__ import annotations

from tests.planted.bug import Bug

_LAUNCHERS = "tests/cuda/test_launchers.py"
_DEVICES = "tests/cuda/test_devices.py"
_COMPILER = "tests/cuda/test_no_compiler.py"
_BUILDS = "tests/cuda/test_builds.py"
_GROUPS = "tests/cuda/test_groups.py::test_a_run_obeys_nccls_rules"
_JOINING = "tests/cuda/test_joining.py"

BUGS = [
    Bug(
        "every_task_a_run_of_its_own",
        "each task of srun or mpirun trains alone, all in one folder",
        "cli/entry.py",
        "        adopt_launcher()\n",
        "",
        (f"{_LAUNCHERS}::test_a_task_is_the_rank_that_its_launcher_says",),
    ),
    Bug(
        "batch_script_waits_for_tasks",
        "a command in an sbatch script, without srun, waits for ranks that never come",
        "engine/launchers.py",
        'return environ.get("ENVIRONMENT") == "BATCH" and not',
        "return False and not",
        (f"{_LAUNCHERS}::test_nothing_is_derived_where_a_task_is_alone_or_knows_its_rank",),
    ),
    Bug(
        "srun_before_mpirun",
        "ranks that mpirun starts inside a SLURM job all take SLURM's number of the helper that started them",
        "engine/launchers.py",
        "    for launcher in _LAUNCHERS:",
        "    for launcher in reversed(_LAUNCHERS):",
        (f"{_LAUNCHERS}::test_a_task_is_the_rank_that_its_launcher_says",),
    ),
    Bug(
        "jobs_share_a_port",
        "two jobs on one machine join each other's ranks",
        "engine/launchers.py",
        '" ".join(job).encode()',
        'b""',
        (f"{_LAUNCHERS}::test_tasks_of_a_job_have_one_port_and_other_jobs_another",),
    ),
    Bug(
        "local_rank_is_no_index",
        "a task that sees one GPU of its own asks for its machine's fourth: invalid device ordinal",
        "engine/devices.py",
        "os.environ[name] = str(index)",
        "pass",
        (f"{_DEVICES}::test_deepspeed_finds_a_ranks_device_by_its_local_rank",),
    ),
    Bug(
        "trains_on_the_cpu_without_a_word",
        "a driver that is too old, or a torch for the CPU: days of training on the CPU of a GPU machine",
        "engine/devices.py",
        "    if nodes:",
        "    if not nodes:",
        (
            f"{_DEVICES}::test_a_gpu_machine_does_not_train_on_its_cpu_without_a_word",
            f"{_DEVICES}::test_a_run_is_told_within_seconds_and_no_data_are_prepared",
        ),
    ),
    Bug(
        "old_driver_not_named",
        "the message of a driver that is too old does not say so",
        "engine/devices.py",
        '"13": 580',
        '"13": 525',
        (f"{_DEVICES}::test_a_gpu_machine_does_not_train_on_its_cpu_without_a_word",),
    ),
    Bug(
        "cpu_and_gpu_mixed",
        "DS_ACCELERATOR=cpu: DeepSpeed computes on the CPU, the rest on the GPU",
        "engine/launchers.py",
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        "pass",
        (f"{_DEVICES}::test_asking_for_the_cpu_hides_the_gpus_from_all_code",),
    ),
    Bug(
        "ranks_share_a_gpu",
        "nccl fails with a duplicate GPU, which no user understands",
        "engine/launch.py",
        "if device_name and len(ranks) > 1:",
        "if device_name and len(ranks) > 2:",
        (f"{_DEVICES}::test_ranks_that_share_a_gpu_are_told_so_all_alike",),
    ),
    Bug(
        "no_nvcc_no_run",
        "a GPU machine whose CUDA came with pip cannot train",
        "engine/operators.py",
        "    except MissingCUDAException:\n",
        "    except ZeroDivisionError:\n",
        (f"{_COMPILER}::test_a_gpu_machine_without_nvcc_trains_as_exactly",),
    ),
    Bug(
        "replacement_does_not_decay",
        "without nvcc --adam.weight_decay does nothing",
        "engine/torch_operators.py",
        "weight_decay=weight_decay, eps=eps",
        "weight_decay=0.0, eps=eps",
        (f"{_COMPILER}::test_a_gpu_machine_without_nvcc_trains_as_exactly",),
    ),
    Bug(
        "replacement_in_silence",
        "--adam.kernel deepspeed takes torch's without a word",
        "engine/operators.py",
        'kernel == "deepspeed" or not use_torchs(operator, why)',
        "not use_torchs(operator, why)",
        (f"{_COMPILER}::test_deepspeeds_kernel_is_refused_where_it_is_asked_for",),
    ),
    Bug(
        "gpus_share_builds",
        "A100 and H100 machines with one home compile over each other's operators",
        "build_folder.py",
        'f"openrlhf-{environment}{gpu}"',
        'f"openrlhf-{environment}"',
        (f"{_BUILDS}::test_gpus_of_two_kinds_do_not_share_builds",),
    ),
    Bug(
        "lustre_ends_the_run",
        "a home on Lustre without flock: OSError at every start",
        "build_folder.py",
        "except OSError:  # Lustre",
        "except ZeroDivisionError:  # Lustre",
        (f"{_BUILDS}::test_where_flock_fails_each_machine_builds_for_itself_one_process_at_a_time",),
    ),
    Bug(
        "ranks_load_in_turn",
        "every rank of every machine waits for the lock to load what is built",
        "engine/operators.py",
        "if operators and all(",
        "if not operators and all(",
        (f"{_BUILDS}::test_ranks_do_not_wait_in_turn_for_what_is_built",),
    ),
    Bug(
        "group_without_timeout",
        "torch ends a hanging run after ten minutes, before the watchdog names the rank",
        "parallel/groups.py",
        "dist.new_group(ranks, timeout=timeout)",
        "dist.new_group(ranks)",
        (_GROUPS,),
    ),
    Bug(
        "deepspeeds_groups_without_timeout",
        "the same, in DeepSpeed's groups",
        "engine/patches/group_timeouts.py",
        "torch.distributed.new_group(ranks, timeout=timeout)",
        "torch.distributed.new_group(ranks)",
        (_GROUPS,),
    ),
    Bug(
        "mesh_without_timeout",
        "the same, with tensor parallelism",
        "engine/patches/group_timeouts.py",
        "    comm.cdb.init_device_mesh = no_mesh",
        "    pass",
        (_GROUPS,),
    ),
    Bug(
        "ring_begins_with_two_ranks",
        "a ring whose first pack leaves a rank without work hangs on nccl",
        "parallel/groups.py",
        "    dist.all_reduce(flag, group=group)",
        "    pass",
        (_GROUPS,),
    ),
    Bug(
        "gloo_on_loopback",
        "ranks of two Debian machines cannot reach each other",
        "engine/gloo_interface.py",
        "os.environ[_NAME] = interface",
        "pass",
        (f"{_JOINING}::test_gloo_listens_where_other_machines_reach_it",),
    ),
    Bug(
        "every_rank_takes_every_core",
        "with an offloaded optimizer eight ranks start eight times as many threads as there are cores",
        "engine/launch.py",
        "num_cores // num_local_ranks(os.environ)",
        "num_cores",
        (f"{_JOINING}::test_ranks_share_the_cores_of_their_machine_also_with_gpus",),
    ),
    Bug(
        "torchruns_single_thread",
        "with torchrun an offloaded optimizer runs on one core of its machine",
        "engine/launch.py",
        "return any(variable.startswith",
        "return True or any(variable.startswith",
        (f"{_JOINING}::test_torchruns_single_thread_is_not_taken_for_the_users_wish",),
    ),
]
