"""Bugs in stages that are started again, and in prompts with a template from elsewhere."""

from __future__ import annotations

from tests.planted.bug import Bug

_GENERATE = "tests/rejection/test_generate.py"
_SCORE = "tests/rejection/test_score.py"
_ITERATE = "tests/rejection/test_iterate.py"
_SERVING = "tests/rejection/test_serving.py"
_IN_PROCESS = "tests/rejection/test_transformers_engine.py"

BUGS = [
    Bug(
        "other_settings_taken_with_a_higher_n",
        "answers of two temperatures are mixed, where n is raised too",
        "rejection/records.py",
        "if {**old, name: facts[name]} != facts or old[name] >= facts[name]:",
        "if old[name] >= facts[name]:",
        (f"{_GENERATE}::test_other_settings_or_weights_are_another_output",),
    ),
    Bug(
        "rewards_started_for_nothing",
        "finished scores are told after a model of minutes is loaded",
        "rejection/score.py",
        "    if is_finished(output):\n        open_output(",
        "    if is_finished(output):\n        [reward.start() for reward in rewards]\n        open_output(",
        (f"{_SCORE}::test_a_finished_stage_is_not_scored_again_and_another_is_refused",),
    ),
    Bug(
        "template_of_a_prompt_without_bounds",
        "a model's template from elsewhere takes all memory while prompts are encoded",
        "datasets/tokenization/chat_template.py",
        "            if self._renders_as_we_do:\n                return self._text(messages, tools, **flags)\n",
        "",
        (f"{_IN_PROCESS}::test_a_template_from_elsewhere_ends_in_words",),
    ),
    Bug(
        "prompt_without_the_assistants_begin",
        "a model goes on with the user's turn",
        "datasets/tokenization/chat_template.py",
        '{"add_generation_prompt": True}\n        try:',
        '{"add_generation_prompt": False}\n        try:',
        (f"{_IN_PROCESS}::test_messages_are_encoded_as_transformers_encodes_them",),
    ),
    Bug(
        "help_shows_what_cannot_be_given",
        "the recipe's help asks for flags that are refused",
        "config/help.py",
        "if name not in root.command.set_by_itself]",
        "if name]",
        (f"{_ITERATE}::test_help_shows_what_can_be_given",),
    ),
    Bug(
        "another_models_server_is_asked",
        "answers come from the server of another model, which holds the port",
        "rejection/serving.py",
        "        if (taken := next(filter(_answers, parts_of(generate.url)), None)) is not None:",
        "        if (taken := None) is not None:",
        (f"{_SERVING}::test_a_server_of_another_model_is_not_asked",),
    ),
    Bug(
        "orphans_are_not_waited_for",
        "two trainings write one folder, where a run is started again while a killed one's training ends",
        "rejection/child_process.py",
        "    return () if lock is None else (lock,)\n",
        "    return ()\n",
        (f"{_SERVING}::test_what_a_killed_run_has_started_is_waited_for",),
    ),
    Bug(
        "server_without_a_list_of_models",
        "transformers serve is never seen to answer on a machine that has downloaded nothing",
        "rejection/serving.py",
        "        return is_well or httpx",
        "        return httpx",
        (f"{_SERVING}::test_a_server_that_tells_no_models_answers_by_its_health",),
    ),
    Bug(
        "read_before_no_other_process_writes",
        "what another process adds until it ends is asked for again, and kept twice",
        "rejection/generate.py",
        "    with RowWriter(output, name) as rows, RowWriter(output, name, LEFT_OUT) as left_out:\n"
        "        # Read now that no other process adds to it: what one has added is not asked for again.\n"
        "        mine = _Share(prompts, _Known.of(output), config, rank, num_ranks)\n",
        "    known = _Known.of(output)\n"
        "    with RowWriter(output, name) as rows, RowWriter(output, name, LEFT_OUT) as left_out:\n"
        "        mine = _Share(prompts, known, config, rank, num_ranks)\n",
        (f"{_GENERATE}::test_what_a_run_has_answered_until_it_ended_is_not_asked_for_again",),
    ),
    Bug(
        "scores_read_before_no_other_process_writes",
        "what another process scores until it ends is scored again, and kept twice",
        "rejection/score.py",
        '    with RowWriter(output, "0") as rows, '
        'tqdm(desc="scoring", unit="answer", total=source.num_lines()) as bar:\n'
        "        done = {judged_identity_of(row) for row in StoredRows(output)}",
        "    done = {judged_identity_of(row) for row in StoredRows(output)}\n"
        '    with RowWriter(output, "0") as rows, tqdm(total=source.num_lines()) as bar:\n        pass',
        (f"{_SCORE}::test_what_a_run_has_scored_until_it_ended_is_not_scored_again",),
    ),
    Bug(
        "forks_of_functions_answer_too",
        "an answer gets the reward of the one before, where a function forks",
        "rejection/rewards/process.py",
        "        if os.getpid() != process:",
        "        if not process:",
        (f"{_SCORE}::test_a_fork_that_a_function_leaves_behind_answers_nobody",),
    ),
    Bug(
        "a_thread_waits_for_the_end_of_the_stage",
        "a regular expression without end runs on after its stage was killed",
        "rejection/rewards/process.py",
        "    if os.fork() == 0:\n        os.close(socket_fd)\n        os.read(of_parent, 1)\n"
        "        os.killpg(0, signal.SIGKILL)\n    os.close(of_parent)\n",
        "    import threading\n\n"
        "    def wait():\n        os.read(of_parent, 1)\n        os.killpg(0, signal.SIGKILL)\n\n"
        "    threading.Thread(target=wait, daemon=True).start()\n",
        (f"{_SCORE}::test_functions_end_with_the_stage_however_that_ends",),
    ),
    Bug(
        "a_full_disk_is_a_traceback",
        "a full disk ends a stage in a traceback, without a word about what is kept",
        "rejection/full_disk.py",
        "            if error.errno not in _REMEDIES:\n",
        "            if error.errno:\n",
        ("tests/rejection/test_full_disk.py",),
    ),
    Bug(
        "checked_before_another_run_has_ended",
        "a run with other settings takes the models of the one that it has waited for",
        "rejection/iterate.py",
        "    with alone_in(plan.output) as lock:\n"
        "        check_nothing_is_stale(plan)  # now that no other run makes more\n",
        "    check_nothing_is_stale(plan)\n    with alone_in(plan.output) as lock:\n",
        (f"{_ITERATE}::test_what_another_run_has_made_until_it_ended_is_not_taken_for_ones_own",),
    ),
    Bug(
        "answers_that_were_given_up_are_kept",
        "what a server had written when it was ended counts as an answer",
        "rejection/engines/openai_engine.py",
        " or reason in _GIVEN_UP:",
        ":",
        ("tests/rejection/test_openai_engine.py::test_failures_that_pass_are_tried_again",),
    ),
    Bug(
        "not_counted_is_zero",
        "answers of a server that counts no tokens have the length 0",
        "rejection/candidates.py",
        '_NOT_COUNTED if (tokens := row.get("num_tokens")) is None else tokens',
        'row.get("num_tokens") or 0',
        ("tests/rejection/test_openai_engine.py::test_what_a_server_does_not_count_is_not_told_as_zero",),
    ),
    Bug(
        "chance_is_told_as_a_gain",
        "a difference whose interval holds 0 is told without a word of chance",
        "rejection/evaluation.py",
        "if low <= 0 <= high else",
        "if low > high else",
        (f"{_ITERATE}::test_iterations_leave_what_the_documents_say",),
    ),
    Bug(
        "prompts_of_no_text_are_sent",
        "half a surrogate pair in a prompt ends the stage in a traceback",
        "rejection/prompts.py",
        "    check_unicode(content if",
        "    str(content if",
        (f"{_GENERATE}::test_a_prompt_that_no_server_could_be_sent_is_told_with_its_place",),
    ),
    Bug(
        "rewards_loaded_after_the_answers",
        "a mistake in a file of rewards is told after a night of answers",
        "rejection/iterate.py",
        "        _check_rewards(plan)\n",
        "",
        (f"{_ITERATE}::test_rewards_that_cannot_be_are_told_before_the_first_answer",),
    ),
    Bug(
        "launcher_looked_for_after_the_answers",
        "a launcher that is not there ends a run in a traceback after its answers",
        "config/disk.py",
        "shutil.which(words[0]) is None:",
        "not words[0]:",
        (f"{_ITERATE}::test_recipes_that_cannot_be_are_refused_at_once",),
    ),
    Bug(
        "a_lone_process_finds_no_gpu",
        "generation without a launcher ends in a KeyError on a GPU machine",
        "engine/devices.py",
        'os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()',
        'os.environ["LOCAL_RANK"]) % torch.cuda.device_count()',
        ("tests/cuda/test_devices.py::test_a_lone_process_takes_the_first_gpu",),
    ),
    Bug(
        "old_checkpoints_are_gone_on_from",
        "a training with other settings is taken for finished, and exports the old weights",
        "rejection/iterate.py",
        "            keep_aside(Path(config.ckpt.path))\n",
        "",
        ("tests/rejection/test_iterate.py::test_a_training_anew_does_not_go_on_from_the_checkpoints_of_the_old_one",),
    ),
    Bug(
        "the_control_is_published",
        "the hub ends with the model that was trained on answers drawn at random",
        "rejection/plan.py",
        "hub=HubConfig() if of else config.hub,",
        "hub=config.hub,",
        ("tests/rejection/test_iterate.py::test_the_control_is_pushed_nowhere",),
    ),
    Bug(
        "last_row_without_line_feed_is_lost",
        "the last answer of a file is not scored",
        "rejection/records.py",
        'return _row(line) if self.path.is_dir() or line.endswith(b"\\n") else _row(line + b"\\n")',
        "return _row(line)",
        ("tests/rejection/test_records.py::test_a_users_file_need_not_end_with_a_line_feed",),
    ),
    Bug(
        "servers_outlive_their_scripts",
        "a server that a script has started keeps its GPU and its port",
        "rejection/child_process.py",
        'kill -s TERM -- "-$1" || exit 0\n',
        'kill -s TERM "$1"; exit 0\n',
        ("tests/rejection/test_serving.py::test_a_server_ends_with_the_script_that_has_started_it",),
    ),
    Bug(
        "seeds_of_numpy_alone",
        "a chat with a seed that trainings take ends with a ValueError",
        "rejection/chat.py",
        "set_seed(settings.seed % 2**32)",
        "set_seed(settings.seed)",
        ("tests/rejection/test_chat.py::test_one_seed_gives_one_conversation",),
    ),
    Bug(
        "servers_outlive_killed_runs",
        "after a kill the server of a script keeps its port and the lock, and the next start waits for it",
        "rejection/child_process.py",
        "read -r nothing\n",
        "read -r nothing || exit 0\n",
        (f"{_SERVING}::test_a_server_of_a_script_ends_with_a_killed_run",),
    ),
    Bug(
        "a_lock_is_waited_for_without_an_end",
        "a start waits for ever for a process that it does not name",
        "rejection/child_process.py",
        "                if time.monotonic() > until:",
        "                if time.monotonic() > until + 60:",
        (f"{_SERVING}::test_what_a_killed_run_has_started_is_waited_for",),
    ),
    Bug(
        "rewards_of_two_models",
        "a server that comes back with another model gives one folder the rewards of two",
        "rejection/rewards/server_reward.py",
        "        if self._model not in (None, said):",
        "        if False:",
        ("tests/rejection/test_rewards.py::test_a_server_that_goes_on_with_another_model_ends_the_stage",),
    ),
    Bug(
        "a_servers_model_is_forgotten_at_a_start",
        "scores are gone on with by the rewards of another model, after a kill",
        "rejection/rewards/server_reward.py",
        "self._output, self._model = output, noted_model(output, self.name)",
        "self._output = output",
        ("tests/rejection/test_rewards.py::test_a_server_that_goes_on_with_another_model_ends_the_stage",),
    ),
    Bug(
        "errors_name_what_a_recipe_cannot_take",
        "a recipe is told to give another --generate.output, which it refuses",
        "rejection/plan.py",
        '    problem = re.sub(rf"--(?:{given}) ", "", problem)\n',
        "",
        (f"{_ITERATE}::test_errors_of_stages_name_what_a_recipe_has",),
    ),
    Bug(
        "held_out_prompts_are_told_as_the_others",
        "the message blames the prompts that are trained on for a change of the held-out ones",
        "rejection/iterate.py",
        "told_as_of_the_recipe(is_evaluation=True)",
        "told_as_of_the_recipe(is_evaluation=False)",
        (f"{_ITERATE}::test_errors_of_stages_name_what_a_recipe_has",),
    ),
    Bug(
        "refused_weights_are_noted",
        "the manifest says that a base has answered which was refused",
        "rejection/iterate.py",
        "        self._manifest.note(step, settings=self._settings[step])\n        output =",
        "        self._manifest.note(step, settings=self._settings[step], weights=model_fingerprint(model))\n"
        "        output =",
        (f"{_ITERATE}::test_errors_of_stages_name_what_a_recipe_has",),
    ),
]
