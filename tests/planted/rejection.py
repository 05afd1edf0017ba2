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
        "        if (taken := next(filter(_answers, _urls(generate)), None)) is not None:",
        "        if (taken := None) is not None:",
        (f"{_SERVING}::test_a_server_of_another_model_is_not_asked",),
    ),
    Bug(
        "orphans_are_not_waited_for",
        "two trainings write one folder, where a run is started again while a killed one's training ends",
        "rejection/child_process.py",
        "    kept_open = () if lock is None else (lock,)\n",
        "    kept_open = ()\n",
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
]
