"""What tells one model from another: weights, tokenizer, configuration."""

from __future__ import annotations

import hashlib

from openrlhf.config.disk import local_path
from openrlhf.trainer.run_identity import base_model_fingerprint

_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def model_fingerprint(name_or_path: str) -> str:
    """Of a folder's weights (see `base_model_fingerprint`) and small files; a name that is no folder is its own."""
    folder = local_path(name_or_path)
    if not folder.is_dir():
        return name_or_path
    digest = hashlib.blake2b(base_model_fingerprint(str(folder)).encode(), digest_size=16)
    for path in (folder / name for name in _FILES):
        digest.update(hashlib.blake2b(path.read_bytes()).digest() if path.is_file() else b"-")
    return digest.hexdigest()
