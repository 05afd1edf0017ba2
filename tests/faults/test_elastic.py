"""A run of pairs that goes on in another layout: what it begins with, and what its bits do not depend on.

Sums over ranks round in another order there, so that the run is not the unbroken one to the bit. These are: the state
that it begins with, and all that it computes from there, however the old run ended and however often it is tried.
"""

from __future__ import annotations

import functools
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from openrlhf.checkpoint.training_state import read_random_states
from openrlhf.exit_codes import EXIT_CODE_RANK_LOST
from openrlhf.parallel.random_streams import seed_micro_step
from tests.faults import elastic
from tests.faults.bench import SECONDS_FOR_A_RUN
from tests.faults.jobs import Job
from tests.helpers.ranks import RankPool
from tests.helpers.workbench import pair_flags, save_model, save_pairs, step_lines
from tests.runs.test_resume import assert_same_run

COMMANDS = ("train_dpo", "train_rm")
NUM_STEPS, SAVED_STEP, SEED = 4, 2, 42  # 10 pairs: steps of 4, 4 and 2, and the first of the second epoch
PASSES_A_STEP = 2
SETTINGS = {
    "train_dpo": dict(model__loss_type="sigmoid,bco_pair", model__loss_weights="1,0.5", ds__packing_samples=True),
    "train_rm": {},  # its model drops activations: the random streams count
}


class Layout(NamedTuple):
    num_ranks: int
    zero_stage: int

    def __str__(self) -> str:
        return f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''} of ZeRO {self.zero_stage}"


MORE_RANKS = (Layout(1, 1), Layout(2, 2))
FEWER_RANKS = (Layout(2, 3), Layout(1, 1))
OTHER_ZERO = [(Layout(2, 1), Layout(2, 2)), (Layout(2, 2), Layout(2, 3)), (Layout(2, 3), Layout(2, 1))]


def each(*changes: tuple[Layout, Layout]) -> pytest.MarkDecorator:
    """Both commands, each of these changes."""
    cases = [
        pytest.param(command, old, new, id=f"{command}, {old}, then {new}")
        for command in COMMANDS
        for old, new in changes
    ]
    return pytest.mark.parametrize(("command", "old", "new"), cases)


class ElasticRuns:
    """Runs of both commands in `folder`; each is made when it is first asked for."""

    def __init__(self, folder: Path, pools: dict[int, RankPool]):
        self.folder, self._pools = folder, pools
        save_pairs(folder / "pairs.jsonl", 10)
        save_model(folder / "train_dpo")
        save_model(folder / "train_rm", kind="gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0)
        self.stopped = functools.cache(self._stopped)
        self.killed = functools.cache(self._killed)
        self._resumed_once = functools.cache(self._resumed)

    def words(self, command: str, layout: Layout, out: Path, **changes) -> list[str]:
        settings = SETTINGS[command] | dict(
            ds__zero_stage=layout.zero_stage,
            ds__param_dtype="bf16",
            train__micro_batch_size=4 // PASSES_A_STEP // layout.num_ranks,
            train__max_epochs=2,
            train__max_steps=NUM_STEPS,
            train__seed=SEED,
            ckpt__save_steps=SAVED_STEP,
            ckpt__max_num=9,
        )
        return pair_flags(self.folder / command, self.folder / "pairs.jsonl", out, **settings, **changes)

    def resumed(
        self, command: str, source: Path, new: Layout, trains: bool = True, number: int = 0
    ) -> tuple[Path, list[elastic.Resumed]]:
        """The folder of a run that goes on from a copy of `source`, and what each rank begins with."""
        return self._resumed_once(command, source, new, trains, number)

    def _stopped(self, command: str, layout: Layout) -> tuple[Path, elastic.State]:
        """The folder of a run that was asked to leave after a step, and its state there."""
        out = self.folder / f"{command} on {layout}, stopped"
        words = self.words(command, layout, out, ckpt__background_save=False)
        state, *_ = self._pools[layout.num_ranks].run(elastic.stopped_after, words, SAVED_STEP, command)
        assert_ends_behind_its_checkpoint(out, SAVED_STEP)
        return out, state

    def _killed(self, command: str, layout: Layout) -> Path:
        """The folder of a run that went on behind that checkpoint until its last rank was killed, amid a later step."""
        out, num_ranks = self.folder / f"{command} on {layout}, killed", layout.num_ranks
        words = self.words(command, layout, out, ckpt__background_save=False)
        die = functools.partial(elastic.die_in_pass, num_ranks - 1, PASSES_A_STEP * (SAVED_STEP + 1) + 1)
        module = f"openrlhf.cli.{command}"
        with Job(words, num_ranks, self.folder / f"{out.name}-log", module=module, before=die) as job:
            codes = job.wait(SECONDS_FOR_A_RUN)
            assert codes == [EXIT_CODE_RANK_LOST] * (num_ranks - 1) + [-signal.SIGKILL], job.words_said()
        assert_ends_behind_its_checkpoint(out, SAVED_STEP + 1)
        return out

    def _resumed(
        self, command: str, source: Path, new: Layout, trains: bool, number: int
    ) -> tuple[Path, list[elastic.Resumed]]:
        out = self.folder / f"{source.name}, then on {new}, {number}"
        shutil.copytree(source, out)
        words = self.words(command, new, out, ckpt__load_enable=True)
        return out, self._pools[new.num_ranks].run(elastic.resumed, words, command, trains)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_rank, two_ranks):
    return ElasticRuns(tmp_path_factory.mktemp("elastic"), {1: one_rank, 2: two_ranks})


def assert_ends_behind_its_checkpoint(out: Path, num_lines: int) -> None:
    assert [path.name for path in (out / "checkpoints").glob("global_step*")] == [f"global_step{SAVED_STEP}"]
    assert len(step_lines(out)) == num_lines


def begun(runs: ElasticRuns, command: str, old: Layout, new: Layout) -> list[elastic.Resumed]:
    """What each rank begins with after a clean stop."""
    source, _ = runs.stopped(command, old)
    return runs.resumed(command, source, new, trains=old.num_ranks != new.num_ranks)[1]


@each(MORE_RANKS, FEWER_RANKS, *OTHER_ZERO)
def test_a_run_begins_with_the_bits_that_the_old_one_had(runs, command, old, new):
    """Weights, float32 masters, moments, schedule, consumed samples: before the first step, on every rank."""
    _, left = runs.stopped(command, old)
    assert left["progress"]["consumed_samples"] == 8
    assert {name.partition("|")[0] for name in left} >= {"weights", "master", "exp_avg", "exp_avg_sq", "step"}
    for rank, found in enumerate(begun(runs, command, old, new)):
        assert found.state.keys() == left.keys()
        assert [name for name in left if found.state[name] != left[name]] == [], f"rank {rank}"


@each(MORE_RANKS, FEWER_RANKS, *OTHER_ZERO)
def test_each_rank_draws_from_the_stream_of_its_place_in_the_run(runs, command, old, new):
    """That is of seed, step, micro-batch and rank, in whatever layout the steps before were made."""
    with torch.random.fork_rng():
        for rank, found in enumerate(begun(runs, command, old, new)):
            seed_micro_step(SEED, SAVED_STEP, 0, rank)
            assert found.seed == torch.initial_seed(), f"rank {rank}"


@each(*OTHER_ZERO)
def test_on_as_many_ranks_every_generator_goes_on_where_it_was(runs, command, old, new):
    source, _ = runs.stopped(command, old)
    for rank, found in enumerate(begun(runs, command, old, new)):
        saved = read_random_states(source / f"checkpoints/global_step{SAVED_STEP}/random_rank{rank:05d}.safetensors")
        assert found.generators == elastic.bits_of_generators(saved), f"rank {rank}"


@each(MORE_RANKS, FEWER_RANKS)
def test_how_the_old_run_ended_changes_no_bit(runs, command, old, new):
    """Killed amid a step behind its checkpoint, or stopped there: the same losses, norms, rewards, weights, moments."""
    after_stop, _ = runs.resumed(command, runs.stopped(command, old)[0], new)
    after_kill, _ = runs.resumed(command, runs.killed(command, old), new)
    assert_same_run(after_stop, after_kill, NUM_STEPS)


@each(MORE_RANKS, FEWER_RANKS)
def test_a_second_resume_gives_the_bits_of_the_first(runs, command, old, new):
    source, _ = runs.stopped(command, old)
    (first, begins), (second, begins_again) = (runs.resumed(command, source, new, number=number) for number in (0, 1))
    assert begins == begins_again
    assert_same_run(first, second, NUM_STEPS)


@each(MORE_RANKS, FEWER_RANKS)
def test_the_samples_behind_the_checkpoint_come_next(runs, command, old, new):
    """The killed run had trained them: the same pairs stand in the first step of the run that goes on."""
    meant = step_lines(runs.killed(command, old))[SAVED_STEP]
    found = step_lines(runs.resumed(command, runs.killed(command, old), new)[0])[SAVED_STEP]
    for name in ("global_step", "epoch", "lr", "num_tokens", "num_target_tokens", "consumed_samples"):
        assert found[name] == meant[name], name
    if command == "train_dpo":  # the other one drops activations, and other ones on another number of ranks
        assert found["loss"] == pytest.approx(meant["loss"], rel=1e-2)
