"""Pages as a real browser shows them, for tests and for the documentation.

`python -m tests.helpers.browser OUTPUT_DIR` writes `run_report.png` and `model_card.png` of a run into docs/pictures/.
Those that are there show the quickstart's run, with `--eval.prompts` added to its command.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import markdown

CHROMIUM = shutil.which("chromium")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_STYLE = "body{font:16px/1.5 sans-serif;max-width:46em;margin:2em auto}td,th{border:1px solid #ccc;padding:.2em .8em}"
_STYLE += "table{border-collapse:collapse}img{max-width:100%}"
_COUNT = "onload = () => {document.body.dataset.pictures = [...document.images].filter(one => one.naturalWidth).length}"


def in_browser(page: Path, scratch: Path, *what: str) -> str:
    """What Chromium prints. Args: scratch: for its profile; what: `--dump-dom`, or `--screenshot=FILE` and a size."""
    words = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={scratch / 'profile'}",
        *what, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def card_page(card: Path, scratch: Path) -> Path:
    """A model card as a page: without its metadata, as the hub shows it. `data-pictures` counts what is drawn."""
    _, _, text = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    body = markdown.markdown(text, extensions=["tables"])
    page = scratch / "card.html"
    head = f"<meta charset=utf-8><base href='{card.parent.as_uri()}/'><style>{_STYLE}</style><script>{_COUNT}</script>"
    page.write_text(f"<!doctype html><html><head>{head}</head><body>{body}</body></html>", encoding="utf-8")
    return page


def main(output_dir: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, page, size in (
            ("run_report", output_dir / "report.html", "1100,2200"),
            ("model_card", card_page(output_dir / "README.md", scratch), "900,1400"),
        ):
            in_browser(
                page, scratch, f"--screenshot={PICTURES / name}.png", f"--window-size={size}", "--hide-scrollbars"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
