"""Bugs of the room checkpoint/: what is on disk."""

from __future__ import annotations

from tests.planted.bug import Bug

_INSTANTS = "tests/checkpoint/test_put_in_place.py"
_STORE = "tests/checkpoint/test_store.py"
_EXPORT = "tests/checkpoint/test_export.py"
_MANIFEST = "tests/checkpoint/test_manifest.py"
_SMALL_FILES = "tests/checkpoint/test_small_files.py"

BUGS = [
    Bug(
        "saved_state_goes_on_training",
        "a checkpoint holds weights of the steps that were made while it was written",
        "checkpoint/copy_room.py",
        "return copy.copy_(tensor.detach())",
        "return tensor.detach()",
        ("tests/checkpoint/test_copy_room.py::test_copies_stand_alone",),
    ),
    Bug(
        "memory_of_a_save_taken_anew",
        "the loop stands still several times as long at every save",
        "checkpoint/copy_room.py",
        "if len(self._memory) < needed_bytes:",
        "if needed_bytes:",
        ("tests/checkpoint/test_copy_room.py::test_the_memory_is_kept_and_grows",),
    ),
    Bug(
        "latest_written_before_the_rename",
        "after a kill `latest` names a checkpoint that is not there",
        "checkpoint/store.py",
        "        self._rename_into_place(aside, target)\n        self._damaged.discard(target.name)\n"
        "        self._write_latest(target.name)\n",
        "        self._write_latest(target.name)\n        self._rename_into_place(aside, target)\n"
        "        self._damaged.discard(target.name)\n",
        (f"{_INSTANTS}::test_latest_names_a_checkpoint_that_is_there",),
    ),
    Bug(
        "oldest_removed_before_the_rename",
        "a kill between leaves no whole checkpoint",
        "checkpoint/store.py",
        "        self._rename_into_place(aside, target)\n        self._damaged",
        "        for path in self.whole()[self.max_num - 1 :]:\n            self._remove(path)\n"
        "        self._rename_into_place(aside, target)\n        self._damaged",
        (f"{_INSTANTS}::test_the_newer_is_in_place_before_the_older_goes",),
    ),
    Bug(
        "rotation_removes_the_best",
        "the best model by evaluation is rotated away",
        "checkpoint/store.py",
        "keep_always = {newest.name, best.name if best else newest.name}",
        "keep_always = {newest.name}",
        (f"{_STORE}::test_best_stays_with_its_loss_also_for_the_next_process",),
    ),
    Bug(
        "best_is_the_worst",
        "the checkpoint with the highest evaluation loss is kept as the best",
        "checkpoint/store.py",
        "best.eval_loss <= eval_loss:",
        "best.eval_loss >= eval_loss:",
        (f"{_STORE}::test_best_stays_with_its_loss_also_for_the_next_process",),
    ),
    Bug(
        "damaged_pushes_out_whole",
        "rotation keeps a damaged checkpoint and removes a whole one",
        "checkpoint/store.py",
        "if path.name not in self._damaged and looks_whole(path)]",
        "if looks_whole(path)]",
        (f"{_STORE}::test_a_damaged_one_does_not_push_out_a_whole_one",),
    ),
    Bug(
        "steps_sorted_as_words",
        "step 9 is taken for newer than step 10",
        "checkpoint/store.py",
        "return sorted(named, key=lambda path: self.step_of(path.name) or 0, reverse=True)",
        "return sorted(named, reverse=True)",
        (f"{_STORE}::test_newest_is_found_and_latest_names_it",),
    ),
    Bug(
        "free_space_not_checked",
        "a save fills the disk",
        "checkpoint/store.py",
        "if free_bytes < size_bytes * _SPARE_SPACE:",
        "if free_bytes < 0:",
        (f"{_STORE}::test_no_room_is_said_before_anything_is_written",),
    ),
    Bug(
        "checksums_not_compared",
        "a flipped bit is trained on in silence",
        "checkpoint/manifest.py",
        "if read and checksum_of(path) != record.blake2b:",
        "if read and not checksum_of(path):",
        (f"{_MANIFEST}::test_any_flipped_bit_is_found[a.bin]",),
    ),
    Bug(
        "manifest_not_checked_itself",
        "a damaged manifest is believed",
        "checkpoint/manifest.py",
        "if text != _with_checksum(content):",
        "if not _with_checksum(content):",
        (f"{_MANIFEST}::test_any_flipped_bit_is_found[manifest.json]",),
    ),
    Bug(
        "another_runs_checkpoint_taken",
        "a run goes on from a checkpoint of other data",
        "checkpoint/identity.py",
        "if found and not allow_mismatch:",
        "if len(found) > 1 and not allow_mismatch:",
        (f"{_SMALL_FILES}::test_each_difference_stops_the_run_in_words",),
    ),
    Bug(
        "random_state_loses_a_value",
        "the first Gaussian number after a resume is another one",
        "checkpoint/random_states.py",
        "json.dumps([python_version, python_gauss])",
        "json.dumps([python_version, None])",
        (f"{_SMALL_FILES}::test_random_streams_go_on_where_they_were",),
    ),
    Bug(
        "tied_weights_saved_twice",
        "the exported model holds its embeddings twice",
        "engine/parameters.py",
        "        yield next((name for name in names if name not in tied_names), names[0]), parameter",
        "        yield from ((name, parameter) for name in sorted(names, key=tied_names.__contains__))",
        (f"{_EXPORT}::test_tied_weights_are_written_once",),
    ),
    Bug(
        "export_without_cache",
        "the exported model generates slowly",
        "checkpoint/export.py",
        "config.use_cache = True",
        "config.use_cache = False",
        (f"{_EXPORT}::test_configuration_uses_the_cache_and_says_the_dtype",),
    ),
    Bug(
        "end_of_turn_not_in_the_export",
        "the exported model does not stop at the end of its turn",
        "checkpoint/generation_settings.py",
        "ids = (tokenizer.eos_token_id, end_of_turn_token_id(tokenizer))",
        "ids = (tokenizer.eos_token_id,)",
        (f"{_EXPORT}::test_generation_stops_at_the_end_token_and_at_the_end_of_a_turn",),
    ),
    Bug(
        "old_weights_stay",
        "an export beside an older one's shards opens as the older one",
        "checkpoint/export.py",
        "            path.unlink()\n    for index",
        "            pass\n    for index",
        (f"{_EXPORT}::test_other_files_stay_and_old_weights_go",),
    ),
    Bug(
        "old_configuration_stays",
        "an interrupted export opens as a model with torn weights",
        "checkpoint/export.py",
        "    for name in (_CONFIG_NAME, _ADAPTER_CONFIG_NAME):\n        (folder / name).unlink(missing_ok=True)\n",
        "    for name in ():\n        (folder / name).unlink(missing_ok=True)\n",
        ("tests/checkpoint/test_export_order.py::test_between_the_old_weights_and_the_new_nothing_can_be_opened",),
    ),
]
