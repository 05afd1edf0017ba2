"""Processes in a fraction of a second: they are forked from one that has imported torch, DeepSpeed and openrlhf.

A new interpreter takes ten seconds for these imports. The fork server (multiprocessing's) imports them once, before
there is any thread or process group; it plays no other part in what a process does.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def fork_server() -> ForkServerContext:
    """A process of it has the environment that this process had when it first started one."""
    context = multiprocessing.get_context("forkserver")
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(PROJECT) not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *path]).rstrip(os.pathsep)
    context.set_forkserver_preload(["tests.helpers.preloaded"])
    return context
