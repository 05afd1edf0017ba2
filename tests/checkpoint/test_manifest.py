"""A manifest finds whatever happened to a file."""

import json
from pathlib import Path

import pytest

from openrlhf.checkpoint.manifest import (
    FileRecord,
    listed_files,
    looks_whole,
    new_checksum,
    read_manifest,
    saved_identity,
    verify,
    write_manifest,
)

NAMES = ("a.bin", "folder/b.bin", "empty.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for name in NAMES[:2]:
        (tmp_path / name).write_bytes(bytes(range(200)))
    (tmp_path / NAMES[2]).touch()
    write_manifest(tmp_path, identity={"seed": 1})
    return tmp_path


def test_untouched_is_whole(folder: Path) -> None:
    assert verify(folder) == []


def test_extra_files_do_not_matter(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert verify(folder) == []


def test_what_was_copied_in_is_not_among_the_listed_files(folder: Path) -> None:
    (folder / "c.bin").write_bytes(b"of another step")
    assert listed_files(folder, "*.bin") == [folder / "a.bin", folder / "folder/b.bin"]


def test_identity_and_versions_come_back(folder: Path) -> None:
    assert saved_identity(folder) == {"seed": 1}
    assert {"openrlhf", "torch"} <= read_manifest(folder)["versions"].keys()


@pytest.mark.parametrize("name", [*NAMES[:2], "manifest.json"])
def test_any_flipped_bit_is_found(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 5, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            problems = verify(folder)
            assert problems, f"bit {bit} of byte {position} was flipped unseen"
            assert name in problems[0]


@pytest.mark.parametrize("name", [*NAMES[:2], "manifest.json"])
def test_cut_short_is_found_without_reading(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert not looks_whole(folder)


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
def test_missing_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (problem,) = verify(folder)
    assert name in problem
    assert "missing" in problem


def test_shares_together_see_everything(folder: Path) -> None:
    (folder / NAMES[1]).write_bytes(bytes(200))
    assert [bool(verify(folder, share, 3)) for share in range(3)].count(True) == 1


def test_a_manifest_is_json_with_the_checksum_of_the_rest_in_the_order_of_names(tmp_path: Path) -> None:
    """So were manifests from the first on: those of earlier versions are read, and ours by them."""
    write_manifest(tmp_path, [FileRecord("a", 1, "x")], {"seed": 3, "names": ["ä", "b"]})
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    content = json.loads(text)
    checksum = content.pop("checksum")
    assert checksum == new_checksum((json.dumps(content, indent=1, sort_keys=True) + "\n").encode()).hexdigest()
    assert text == json.dumps({**content, "checksum": checksum}, indent=1, sort_keys=True) + "\n"
    assert read_manifest(tmp_path) == content
