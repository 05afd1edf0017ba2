"""Bugs of the room checkpoint/: what is on disk."""

from __future__ import annotations

from tests.planted.bug import Bug

_INSTANTS = "tests/checkpoint/test_put_in_place.py"
_STORE = "tests/checkpoint/test_store.py"
_EXPORT = "tests/checkpoint/test_export.py"
_MANIFEST = "tests/checkpoint/test_manifest.py"
_IDENTITY = "tests/checkpoint/test_identity.py"
_SMALL_FILES = "tests/checkpoint/test_small_files.py"
_ATOMIC = "tests/test_atomic_file.py"
_BACKGROUND = "tests/checkpoint/test_background.py"
_FRAGMENTS = "tests/checkpoint/test_saved_fragments.py"

BUGS = [
    Bug(
        "muon_cannot_be_saved_in_bf16",
        "a run with Muon, bf16 and ZeRO 1 ends at its first checkpoint",
        "engine/fragments.py",
        ' or hasattr(optimizer, "fp32_groups_flat_partition") or optimizer.cpu_offload',
        " or optimizer.cpu_offload",
        ("tests/checkpoint/test_layouts.py::test_muon_keeps_its_momentum",),
    ),
    Bug(
        "saved_state_goes_on_training",
        "a checkpoint holds weights of the steps that were made while it was written",
        "checkpoint/host_buffer.py",
        "return copy.copy_(tensor.detach())",
        "return tensor.detach()",
        ("tests/checkpoint/test_host_buffer.py::test_copies_stand_alone",),
    ),
    Bug(
        "memory_of_a_save_taken_anew",
        "the loop stands still several times as long at every save",
        "checkpoint/host_buffer.py",
        "if len(self._memory) < capacity_bytes:",
        "if capacity_bytes:",
        ("tests/checkpoint/test_host_buffer.py::test_the_memory_is_kept_and_grows",),
    ),
    Bug(
        "latest_written_before_the_rename",
        "after a kill `latest` names a checkpoint that is not there",
        "checkpoint/store.py",
        "        self._rename_into_place(staging, target)\n",
        "        self._write_latest(target.name)\n        self._rename_into_place(staging, target)\n",
        (f"{_INSTANTS}::test_latest_names_a_checkpoint_that_is_there",),
    ),
    Bug(
        "oldest_removed_before_the_rename",
        "a kill between leaves no whole checkpoint",
        "checkpoint/store.py",
        "        self._rename_into_place(staging, target)\n",
        "        for path in self.whole()[self.max_num - 1 :]:\n            self._remove(path)\n"
        "        self._rename_into_place(staging, target)\n",
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
        "if path.name not in self._damaged and looks_whole(path))",
        "if looks_whole(path))",
        (f"{_STORE}::test_a_damaged_one_does_not_push_out_a_whole_one",),
    ),
    Bug(
        "steps_sorted_as_words",
        "step 9 is taken for newer than step 10",
        "checkpoint/store.py",
        "by_step = sorted((step, path) for",
        "by_step = sorted((path.name, path) for",
        (f"{_STORE}::test_newest_is_found_and_latest_names_it",),
    ),
    Bug(
        "free_space_not_checked",
        "a save fills the disk",
        "checkpoint/store.py",
        "if free_bytes < size_bytes * _SPACE_FACTOR:",
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
        "if text != _with_checksum(",
        "if not _with_checksum(",
        (f"{_MANIFEST}::test_any_flipped_bit_is_found[manifest.json]",),
    ),
    Bug(
        "another_runs_checkpoint_taken",
        "a run goes on from a checkpoint of other data",
        "checkpoint/identity.py",
        "if found.refused and not allow_mismatch:",
        "if len(found.refused) > 1 and not allow_mismatch:",
        (f"{_IDENTITY}::test_a_fact_that_makes_it_another_run_is_refused",),
    ),
    Bug(
        "allowed_differences_not_told",
        "--ckpt.allow_mismatch goes on with other data or another seed without a word",
        "checkpoint/identity.py",
        "for sentence in found.refused] + found.told",
        "for sentence in ()] + found.told",
        (f"{_IDENTITY}::test_who_means_it_goes_on_and_is_told_each_difference",),
    ),
    Bug(
        "older_checkpoints_adapters_not_compared",
        "a run with other adapters goes on from an older checkpoint",
        "checkpoint/identity.py",
        'must_match=settings | _older_adapter(known.get("adapter")),',
        "must_match=settings,",
        (f"{_IDENTITY}::test_adapters_of_an_older_checkpoint_are_read_from_their_words",),
    ),
    Bug(
        "idle_settings_compared",
        "a run with AdamW is told of Muon's learning rate, one without adapters is refused for their alpha",
        "trainer/run_identity.py",
        "if not _is_idle(name, values):",
        "if True:",
        (f"{_IDENTITY}::test_a_setting_that_does_nothing_in_this_run_is_not_compared",),
    ),
    Bug(
        "random_state_loses_a_value",
        "the first Gaussian number after a resume is another one",
        "checkpoint/training_state.py",
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
        "checkpoint/model_settings.py",
        "part.use_cache = True",
        "part.use_cache = False",
        (f"{_EXPORT}::test_configuration_uses_the_cache_and_says_the_dtype",),
    ),
    Bug(
        "shards_not_compared_with_what_was_meant",
        "a disk that stores other bytes gives an exported model with wrong weights",
        "checkpoint/tensor_file.py",
        "if problem := problem_of(folder, record):",
        "if problem := None:",
        (f"{_EXPORT}::test_what_comes_back_different_from_the_disk_is_an_error",),
    ),
    Bug(
        "end_of_turn_not_in_the_export",
        "the exported model does not stop at the end of its turn",
        "checkpoint/model_settings.py",
        "ids = (tokenizer.eos_token_id, end_of_turn_token_id(tokenizer))",
        "ids = (tokenizer.eos_token_id,)",
        (f"{_EXPORT}::test_generation_stops_at_the_end_token_and_at_the_end_of_a_turn",),
    ),
    Bug(
        "old_weights_stay",
        "an export beside an older one's shards opens as the older one",
        "checkpoint/export.py",
        "elif name in _CONFIGS or name not in new:",
        "elif name in _CONFIGS:",
        (f"{_EXPORT}::test_other_files_stay_and_old_weights_go",),
    ),
    Bug(
        "old_configuration_stays",
        "an interrupted export opens as a model with torn weights",
        "checkpoint/export.py",
        "elif name in _CONFIGS or name not in new:",
        "elif name not in new:",
        ("tests/checkpoint/test_export_order.py::test_between_the_old_weights_and_the_new_nothing_can_be_opened",),
    ),
    Bug(
        "later_limits_ignored",
        "limits that a later save_ckpt gives do nothing: the disk fills",
        "checkpoint/store.py",
        "        self.max_num = max_num\n        self.max_bytes = max_bytes\n",
        "        for name, value in (('max_num', max_num), ('max_bytes', max_bytes)):\n"
        "            self.__dict__.setdefault(name, value)\n",
        (f"{_STORE}::test_limits_given_later_count_from_the_next_save_on",),
    ),
    Bug(
        "renamed_before_it_is_on_the_disk",
        "after a power failure a file is empty: its new name was on the disk before its content",
        "atomic_file.py",
        "        flush_to_disk(temporary)\n        os.replace(temporary, path)\n",
        "        os.replace(temporary, path)\n        flush_to_disk(path)\n",
        (f"{_ATOMIC}::test_content_is_on_the_disk_before_the_rename_and_the_name_after",),
    ),
    Bug(
        "writers_share_a_temporary_file",
        "two processes that replace one file leave a mixture, or one of them fails",
        "atomic_file.py",
        "{secrets.token_hex(4)}",
        "temporary",
        (f"{_ATOMIC}::test_two_writers_do_not_meet",),
    ),
    Bug(
        "rank_0_waits_for_a_failed_rank",
        "a save that fails on one rank holds the loop for half an hour",
        "checkpoint/checkpointer.py",
        "            pending.stop()\n        #",
        "            pass\n        #",
        (f"{_BACKGROUND}::test_a_rank_that_fails_without_a_report_is_not_waited_for",),
    ),
    Bug(
        "pieces_read_from_their_beginning",
        "after a change of layout the optimizer has other moments than were saved",
        "checkpoint/optimizer_states.py",
        "part = piece[position - piece_start : piece_end - piece_start]",
        "part = piece[0 : piece_end - position]",
        (f"{_FRAGMENTS}::test_a_stretch_is_put_together_from_the_pieces_that_overlap_it",),
    ),
]
