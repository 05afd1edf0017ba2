"""How the weights of a model reach the servers that answer: servers are started with them, or told to load them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx

from openrlhf.config.disk import parts_of, without_secrets
from openrlhf.config.iterate_settings import IteratedSamplingConfig
from openrlhf.errors import UserError, first_line_of
from openrlhf.rejection.child_process import group_of, words_of
from openrlhf.rejection.server_answer import health_of, of_the_protocol

_SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def serving(generate: IteratedSamplingConfig, model: str, lock: int | None = None) -> Iterator[None]:
    """In the block the engine answers with this model. Nothing is to do for an engine in this process.

    Args: lock: as of `child_process.start`.

    Raises UserError where a server does not come up, or does not load the model.
    """
    if generate.start_command is not None:
        if (taken := next(filter(_answers, parts_of(generate.url)), None)) is not None:
            raise UserError(
                f"{taken} answers before --generate.start_command has started a server, so another "
                "model would: end what listens there, or give another port."
            )
        words = [word.replace("{model}", model) for word in words_of(generate.start_command)]
        with ExitStack() as stack:
            try:
                process = stack.enter_context(group_of(words, lock))
            except OSError as error:
                raise UserError(f"--generate.start_command cannot be run: {words[0]}: {error.strerror}.") from error
            _wait_until_it_answers(generate, process)
            yield
        return
    for url in parts_of(generate.reload_url):
        _reload(url, model, generate.start_timeout_seconds)
    yield


def _wait_until_it_answers(generate: IteratedSamplingConfig, process: object) -> None:
    until = time.monotonic() + generate.start_timeout_seconds
    for url in parts_of(generate.url):
        while not _answers(url):
            if (code := process.poll()) is not None:  # type: ignore[attr-defined]
                raise UserError(f"--generate.start_command ended with exit code {code}; its messages stand above.")
            if time.monotonic() > until:
                raise UserError(
                    f"{url} does not answer {generate.start_timeout_seconds:g} seconds after "
                    "--generate.start_command: compare its port with --generate.url, or raise "
                    "--generate.start_timeout_seconds."
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _answers(url: str) -> bool:
    """Not every server has both: `transformers serve` tells no models where nothing was ever downloaded."""
    try:
        is_well = httpx.get(health_of(url), timeout=5.0).status_code == 200
        return is_well or httpx.get(f"{of_the_protocol(url)}/models", timeout=5.0).status_code < 500
    except httpx.HTTPError:
        return False


def _reload(url: str, model: str, timeout_seconds: float) -> None:
    path = os.path.abspath(model) if os.path.isdir(model) else model
    try:
        response = httpx.post(url, json={"model_path": path}, timeout=timeout_seconds)
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"--generate.reload_url {url} has not loaded {path}: {first_line_of(error)}"
        raise UserError(without_secrets(said)) from error
