"""The card of an exported model, and its upload to a hub on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from openrlhf.checkpoint.manifest import listed_names
from openrlhf.config import SFTConfig
from openrlhf.config.schema import build
from openrlhf.run.model_card import write_card
from tests.helpers.browser import CHROMIUM, card_page, in_browser
from tests.helpers.hub import Hub
from tests.helpers.workbench import flags, save_model, save_rows


@pytest.fixture(scope="module")
def hub() -> Any:
    with Hub() as hub:
        yield hub


def _command(module: str, hub: Hub, *words: str) -> subprocess.CompletedProcess:
    environ = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_x",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", f"openrlhf.cli.{module}", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> tuple[Path, subprocess.CompletedProcess]:
    """A run that pushes, at a moment when the hub refuses commits."""
    folder = tmp_path_factory.mktemp("hub")
    model, rows = save_model(folder / "model"), save_rows(folder / "rows.jsonl", 8)
    wishes = {"hub__push": "true", "hub__model_id": "me/tiny", "hub__revision": "v1", "hub__tags": "coffee"}
    wishes |= {"hub__license": "other", "hub__license_name": "coffee-1.0", "hub__license_link": "LICENSE"}
    wishes |= {"hub__language": "en"}
    (folder / "out").mkdir()
    (folder / "out" / "my_notes.txt").write_text("for nobody")
    wishes |= {"ckpt__path": folder / "out" / "checkpoints_sft"}  # where it is by default: in the model's folder
    hub.refuse = True
    done = _command("train_sft", hub, *flags(model, rows, folder / "out", ckpt__save_steps=1, **wishes))
    hub.refuse = False
    return folder / "out", done


def test_a_refused_push_is_told_and_the_run_is_well(trained: tuple[Path, Any]) -> None:
    out, done = trained
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not be pushed to me/tiny" in done.stdout
    assert f"python -m openrlhf.cli.push --ckpt.output_dir {out} --hub.model_id me/tiny" in done.stdout
    assert (out / "model.safetensors").is_file()


def test_the_card_has_the_hubs_metadata_and_the_runs_facts(trained: tuple[Path, Any]) -> None:
    out, _ = trained
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["openrlhf", "sft", "coffee"]
    assert card.data.base_model is None  # a folder is no name of the hub's
    licence = (card.data.license, card.data.license_name, card.data.license_link)
    assert licence == ("other", "coffee-1.0", "LICENSE")
    assert card.data.language == ["en"]
    again = ModelCardData(**card.data.to_dict())
    assert again.to_dict() == card.data.to_dict(), "the hub's library does not take its own fields back"
    assert "| samples | 8 |" in card.text
    assert "| optimizer steps | 2 |" in card.text
    assert "| adam.lr | 0.001 |" in card.text
    assert "![Training curves](training_curves.png)" in card.text
    assert str(out.parent) not in card.text


def test_the_steps_of_the_card_are_the_runs_though_metrics_lack_the_last(tmp_path: Path) -> None:
    lines = [json.dumps({"global_step": step, "loss": 1 / step}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    write_card(tmp_path, build(SFTConfig, {}), _Report(), 7)
    card = (tmp_path / "README.md").read_text()
    assert "| optimizer steps | 7 |" in card
    assert "| loss of step 2, the last one in metrics.jsonl | 0.5 |" in card


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_the_card_tells_settings_from_a_layout_that_the_run_may_have_chosen(tmp_path: Path) -> None:
    config = build(SFTConfig, {"adam.lr": 0.5, "ds.zero_stage": 3, "train.max_tokens_per_micro_batch": 99})
    write_card(tmp_path, config, _Report(), 1)
    _, chosen, rest = re.split("## (?:Settings|Layout)[^|]*", (tmp_path / "README.md").read_text())
    assert "adam.lr" in chosen
    assert "ds.zero_stage" not in chosen
    assert "| ds.zero_stage | 3 |" in rest
    assert "| train.max_tokens_per_micro_batch | 99 |" in rest


def test_the_card_states_the_numbers_of_the_exported_step(tmp_path: Path) -> None:
    evaluations = {2: 0.5, 4: 4.0}
    lines = [{"global_step": step, "loss": float(step)} for step in range(1, 6)]
    lines += [{"global_step": step, "eval_loss": loss} for step, loss in evaluations.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, loss, evaluated_at, of_steps in ((2, 2, 2, "2, the best of 5"), (5, 5, 4, "5")):
        write_card(tmp_path, build(SFTConfig, {}), _Report(), step)
        card = (tmp_path / "README.md").read_text()
        assert f"| optimizer steps | {of_steps} |" in card
        assert f"| loss of the last step | {loss} |" in card
        assert f"| evaluated after step | {evaluated_at} |\n| eval_loss | {evaluations[evaluated_at]:g} |" in card


class _Report:
    num_samples = num_tokens = num_target_tokens = 1
    left_out: dict = {}


def test_a_browser_shows_the_card_with_its_tables_and_the_curves(trained: tuple[Path, Any], tmp_path: Path) -> None:
    shown = in_browser(card_page(trained[0] / "README.md", tmp_path), tmp_path, "--dump-dom")
    assert shown.count("<table>") == 5
    assert "<td>adam.lr</td>" in shown
    assert 'data-pictures="1"' in shown, "the picture of the curves is not drawn"
    assert "pipeline_tag" not in shown, "the metadata are shown as text"


def test_the_push_done_again_uploads_the_model_whole(trained: tuple[Path, Any], hub: Hub) -> None:
    out, _ = trained
    done = _command("push", hub, "--ckpt.output_dir", str(out), "--hub.model_id", "me/tiny", "--hub.revision", "v1")
    assert done.returncode == 0, done.stdout + done.stderr
    uploaded = hub.files["me/tiny", "v1"]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl"):
        assert uploaded[name] == (out / name).read_bytes(), name
    of_the_model = {Path(name).as_posix() for name in listed_names(out)}
    assert uploaded.keys() - {".gitattributes"} == of_the_model | {"README.md", "metrics.jsonl", "training_curves.png"}
    assert list(out.glob("checkpoints_sft/global_step*")), "there was nothing to leave out"
    assert hub.cards[-1].encode() == uploaded["README.md"], "the hub has looked at another card"
    created = hub.repositories["me/tiny"]
    assert _is_private(created)


def test_a_repository_is_public_where_that_is_asked_for(trained: tuple[Path, Any], hub: Hub) -> None:
    words = ["--ckpt.output_dir", str(trained[0]), "--hub.model_id", "me/open", "--hub.private", "false"]
    done = _command("push", hub, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not _is_private(hub.repositories["me/open"])
    assert "model.safetensors" in hub.files["me/open", "main"]


def _is_private(created: dict[str, Any]) -> bool:
    return created.get("visibility") == "private" or created.get("private") is True


def test_a_folder_without_a_model_is_not_pushed(tmp_path: Path, hub: Hub) -> None:
    done = _command("push", hub, "--ckpt.output_dir", str(tmp_path), "--hub.model_id", "me/other")
    assert done.returncode == 2
    assert "holds no whole exported model" in done.stderr
    assert "me/other" not in hub.repositories


def test_a_push_to_nowhere_is_refused_at_once(tmp_path: Path, hub: Hub) -> None:
    model, rows = save_model(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl", 4)
    done = _command("train_sft", hub, *flags(model, rows, tmp_path / "out", hub__push="true"))
    assert done.returncode == 2
    assert "add --hub.model_id owner/name" in done.stderr
