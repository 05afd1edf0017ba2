"""vLLM in this process, where it is installed. It batches by itself; requests are added as answers leave."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from typing import Any

from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.errors import UserError
from openrlhf.models.loading import load_config, saved_dtype
from openrlhf.rejection.engines.encoding import PromptEncoder, PromptRefused
from openrlhf.rejection.engines.engine import TOO_LONG, Engine, Generation, Refusal, Request, Sampling

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class VLLMEngine(Engine):
    """Args: concurrency: answers that vLLM may compute at once; others as of `--model`, `--generate` and `--data`."""

    def __init__(
        self,
        name_or_path: str,
        sampling: Sampling,
        concurrency: int,
        param_dtype: str = "auto",
        template: str | None = None,
        trust_remote_code: bool = False,
    ):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each rank's vLLM would take the first GPU
            raise UserError(
                "--generate.engine vllm is for one process, and this run has several ranks: start it without a "
                "launcher; --generate.runner ray gives each GPU an engine of its own."
            )
        if importlib.util.find_spec("vllm") is None:
            raise UserError("--generate.engine vllm needs a package that is not installed: pip install vllm.")
        self._vllm: Any = importlib.import_module("vllm")
        if param_dtype == "auto":  # vLLM's own would round float32
            param_dtype = saved_dtype(load_config(name_or_path, trust_remote_code), "bf16")
        tokenizer = get_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
        self._encoder = PromptEncoder(tokenizer, template)
        self._sampling, self._concurrency = sampling, concurrency
        self._llm = self._vllm.LLM(
            model=name_or_path,
            dtype=_DTYPES[param_dtype],
            max_num_seqs=concurrency,
            trust_remote_code=trust_remote_code,
            generation_config="vllm",  # the settings that are given, and none that the model's folder adds
        )
        self._max_positions = self._llm.llm_engine.model_config.max_model_len

    def answers(self, requests: Iterator[Request]) -> Iterator[Generation | Refusal]:
        engine = self._llm.llm_engine
        asked: dict[str, tuple[Request, list[int]]] = {}
        numbers = itertools.count()
        while True:
            taken = list(itertools.islice(requests, self._concurrency - len(asked)))
            if not taken and not asked:
                return
            for request in taken:
                try:
                    ids = self._encoder.encode(request.prompt)
                except PromptRefused as refused:
                    yield Refusal(request, refused.reason)
                    continue
                limit = self._sampling.max_prompt_len or self._max_positions - 1
                if len(ids) > min(limit, self._max_positions - 1):
                    yield Refusal(request, TOO_LONG)
                    continue
                name = str(next(numbers))
                engine.add_request(name, {"prompt_token_ids": ids}, self._parameters(request, len(ids)))
                asked[name] = request, ids
            for output in engine.step() if asked else ():
                if output.finished:
                    yield self._answer_of(*asked.pop(output.request_id), output.outputs[0])

    def _parameters(self, request: Request, num_prompt_tokens: int) -> Any:
        return self._vllm.SamplingParams(
            n=1,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=min(self._sampling.max_new_tokens, self._max_positions - num_prompt_tokens),
            seed=request.seed,
            detokenize=False,
        )

    def _answer_of(self, request: Request, prompt_ids: list[int], output: Any) -> Generation:
        ids = list(output.token_ids)
        return Generation(request, self._encoder.decode(prompt_ids, ids), output.finish_reason, len(ids))
