"""Data of a training, prepared before it: `python -m openrlhf.cli.prepare_data FLAGS [--runner ray]`.

Takes the flags of train_sft, which then finds its data in --data.cache_dir. It needs the tokenizer alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import PrepareConfig, parse_config


def main(argv: Sequence[str]) -> None:
    config = parse_config(PrepareConfig, argv)
    from openrlhf.datasets.sft_dataset import prepare_sft_dataset
    from openrlhf.parallel.ray_workers import check_ray
    from openrlhf.run.builders import build_eval_data, build_tokenizer, build_train_data

    if config.runner == "ray":
        check_ray("--runner")
    tokenizer = build_tokenizer(config)
    is_text = config.model.pretrain_mode_enable
    prepare = functools.partial(prepare_sft_dataset, pretrain_mode=is_text, runner=config.runner)
    for build in (build_train_data, build_eval_data):
        dataset = build(config, tokenizer, prepare)
        if dataset is not None:
            print(*dataset.report.lines(), f"prepared in {dataset.samples.folder}", sep="\n", flush=True)


if __name__ == "__main__":
    leave_when_asked()
    run_command(main)
