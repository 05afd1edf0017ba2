"""The fault points of a save and of an export, in the order in which they are passed."""

SAVE_POINTS = (
    "save.begun",
    "save.copied",
    "save.half_of_tensors_written",
    "save.tensors_written",
    "save.tensors_flushed",
    "save.random_states_written",
    "save.rank_done",
    "save.all_ranks_done",
    "save.before_manifest",
    "save.manifest_written",
    "save.folder_flushed",
    "save.old_namesake_moved",
    "save.renamed",
    "save.latest_aside",
    "save.latest_renamed",
    "save.best_renamed",
    "save.before_rotation",
    "save.moved_for_removal",
    "save.removed",
)
EXPORT_POINTS = (
    "export.begun",
    "export.half_of_shard_written",
    "export.shard_written",
    "export.written",
    "export.read_back",
    "export.old_config_removed",
    "export.half_in_place",
    "export.before_config",
    "export.in_place",
)
