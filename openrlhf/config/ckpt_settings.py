"""The settings of saves, of what is exported, and of going on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from openrlhf.config.adapter_settings import MERGED
from openrlhf.config.kinds import EverySteps, Minutes, Place, PositiveCount, PositiveNumber, Size, size_bytes
from openrlhf.config.schema import free


@dataclasses.dataclass(frozen=True)
class CkptConfig:
    """Saves: their content, place and rhythm; and going on with a run."""

    output_dir: Place = free("./ckpt", "folder of the trained model, metrics.jsonl and the resolved configuration")
    path: Place = free("./ckpt/checkpoints_sft", "folder of training checkpoints, to go on from")
    save_steps: EverySteps = free(-1, "save every that many optimizer steps; -1: not by steps")
    save_minutes: Minutes | None = free(None, "save every that many minutes, beside save_steps")
    every_epoch: bool = free(False, "save after every epoch, beside save_steps")
    save_hf: bool = free(False, "at each save export the model in Hugging Face form too")
    disable_ds: bool = free(False, "save no training checkpoints")
    max_num: PositiveCount = free(3, "training checkpoints kept")
    max_mem: PositiveNumber = free(1e8, "size of the kept checkpoints, in GiB")
    load_enable: bool = free(False, "go on from the newest whole checkpoint in ckpt.path")
    allow_mismatch: bool = free(
        False,
        "go on although data, seed, batch size, loss, model, tokenizer, optimizer or dtype are not the checkpoint's",
    )
    export_best: bool = free(
        False, "at the end go back to the checkpoint of the lowest eval_loss, and export its model in place of the last"
    )
    export_shard_size: Size = free("5GB", "largest file of the exported model")
    merge_lora: bool = free(False, "export the base with the adapter merged into it, too: in output_dir/merged")
    background_save: bool = free(True, "write checkpoints beside the training")
    max_failed_saves_in_a_row: PositiveCount = free(3, "stop when that many saves have failed one after another")

    @property
    def saves_along_the_way(self) -> bool:
        """Whether a save is asked for before the end."""
        return self.save_steps > 0 or self.every_epoch or self.save_minutes is not None

    @property
    def export_shard_bytes(self) -> int:
        """The largest file of exported weights."""
        return size_bytes(self.export_shard_size)

    @property
    def merged_dir(self) -> str:
        """Folder of the base with the adapter merged into it."""
        return str(Path(self.output_dir) / MERGED)

    def exported_folders(self) -> tuple[str, ...]:
        """The folders of models at the end of a run."""
        return (self.output_dir, self.merged_dir) if self.merge_lora else (self.output_dir,)

    def folders(self) -> tuple[str, ...]:
        """The folders that a run writes into, and that no other may write into meanwhile."""
        writes_path = not self.disable_ds or self.save_hf or Path(self.path).exists()
        return (self.output_dir, self.path) if writes_path else (self.output_dir,)
