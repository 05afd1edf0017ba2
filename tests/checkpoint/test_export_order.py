"""While files of an exported model are exchanged, the folder has no configuration: nothing opens a mixture."""

from pathlib import Path

import pytest

from openrlhf.checkpoint import export as export_module
from openrlhf.checkpoint import model_settings
from openrlhf.checkpoint.export import export_model, is_exported
from tests.helpers.tiny_models import tiny_model


def test_between_the_old_weights_and_the_new_nothing_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_model("llama"), None, tmp_path)
    seen: dict[str, bool] = {}
    for module in (export_module, model_settings):
        monkeypatch.setattr(module, "fault_point", lambda name: seen.update({name: is_exported(tmp_path)}))
    export_model(tiny_model("llama", seed=1), None, tmp_path)
    assert seen["export.read_back"], "the old model stands until the new one has been read back"
    exchanging = ("export.old_config_removed", "export.half_in_place", "export.before_config")
    assert [name for name in exchanging if seen[name]] == []
    assert seen["export.in_place"]
