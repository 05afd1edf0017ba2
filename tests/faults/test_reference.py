"""The file of a reference's log-probs, whose writer is killed amid a write: the next run goes on behind it."""

from __future__ import annotations

import functools
import os
import signal
from typing import BinaryIO

from openrlhf.exit_codes import EXIT_CODE_RANK_LOST
from tests.faults.bench import BATCH_SIZE, NUM_STEPS, SECONDS_FOR_A_RUN, Layout
from tests.faults.jobs import Job

LAYOUT = Layout(2, 2, command="train_dpo")
WINDOW_BYTES = BATCH_SIZE * 24  # of a journal, with checksums


def kill_amid_write(nth: int) -> None:
    """SIGKILL to the process that writes, behind half the bytes of its nth write."""
    from openrlhf.trainer import computed_reference

    append, sizes = computed_reference._append, list[int]()

    def append_or_die(journal: BinaryIO, content: bytes) -> None:
        sizes.append(len(content))
        is_last = len(sizes) == nth
        append(journal, content[: len(content) // 2] if is_last else content)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    computed_reference._append = append_or_die


def test_a_reference_is_computed_on_after_kills(bench, tmp_path):
    """Killed in its 20th window, then in its last, then not; beside it, one that nothing broke."""

    def launched(name: str, nth: int | None = None) -> tuple[list[int] | None, bytes]:
        """Exit codes, and what the only file holds."""
        cache = tmp_path / f"cache-{name}"
        settings = dict(ref__precompute=True, eval__dataset=None, eval__steps=None, train__max_steps=1)
        no_saves = dict(ckpt__load_enable=None, ckpt__save_steps=None, ckpt__max_num=None, ckpt__disable_ds=True)
        words = bench.words(LAYOUT, tmp_path / name, data__cache_dir=cache, **settings, **no_saves)
        before = None if nth is None else functools.partial(kill_amid_write, nth)
        with Job(words, LAYOUT.num_ranks, tmp_path / "log", module=LAYOUT.module, before=before) as job:
            codes = job.wait(SECONDS_FOR_A_RUN)
            assert codes is not None, job.words_said()
        (file,) = (cache / "references").iterdir()
        return codes, file.read_bytes()

    killed = [-signal.SIGKILL, EXIT_CODE_RANK_LOST]
    codes, first = launched("broken", 21)  # the first write is of the rows before, here of none
    assert (codes, len(first)) == (killed, 19 * WINDOW_BYTES + WINDOW_BYTES // 2)
    codes, second = launched("broken", 1 + NUM_STEPS - 19)
    assert (codes, len(second)) == (killed, NUM_STEPS * WINDOW_BYTES - WINDOW_BYTES // 2), "it began behind window 19"
    codes, third = launched("broken")
    assert codes == [0, 0]
    assert launched("unbroken") == ([0, 0], third), "the same log-probs to the bit"
