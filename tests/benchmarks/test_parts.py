"""The parts of the suite that count: figures from times, operations from shapes, tables from results."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import cpu_kernels, gpu, gpu_machine, report
from benchmarks.cases import CASES, on_processor, quick_form
from benchmarks.contestants import Job, our_words, trl_arguments
from benchmarks.flops import model_flops, plain_flops
from benchmarks.gpu import llama_layers
from benchmarks.materials import MODELS, Material, RowFacts, shape_of
from benchmarks.measures import Bench, WrongTokens, speed_of, stalls_of
from benchmarks.process import ContestantFailed, ProcessRun, run_process
from benchmarks.run import keep_trl, shares_of_peak, summarize
from benchmarks.step_profile import shares_by_kind
from openrlhf.models.cpu_kernels import attention


def facts(num_tokens: int) -> RowFacts:
    return RowFacts(Path("rows.jsonl"), 4, num_tokens, num_tokens // 2, num_tokens**2, num_tokens, "a test")


def test_speed_leaves_out_the_warm_up():
    run = ProcessRun(steps=[{"num_tokens": 999}, *2 * [{"num_tokens": 100}]])
    run.step_seconds, run.cpu_seconds = [10.0, 12.0, 14.0], [10.0, 14.0, 18.0]
    figures = speed_of(run, 1, facts(1_199))
    assert figures["tokens_per_second"] == pytest.approx(50)
    assert figures["tokens_per_cpu_second"] == pytest.approx(25)


def test_speed_refuses_a_pass_that_misses_tokens():
    run = ProcessRun(step_seconds=[1.0, 2.0], steps=2 * [{"num_tokens": 10}])
    with pytest.raises(WrongTokens, match="20 tokens were trained, rows.jsonl holds 21"):
        speed_of(run, 1, facts(21))


def test_a_stall_is_what_a_step_after_a_save_takes_longer():
    # steps of 1 s; saves after steps 3 and 6 hold the loop for 0.75 s and 0.5 s, and slow the step after by 0.25 s
    ends = [10.0, 11.0, 12.0, 13.75, 15.0, 16.0, 17.5, 18.75]
    figures = stalls_of(ends, save_every=3)
    assert figures["first_stall_seconds"] == pytest.approx(0.75)
    assert figures["later_stall_seconds"] == pytest.approx(0.5)
    assert figures["lost_seconds_a_save"] == pytest.approx(0.875)


@pytest.mark.parametrize(
    ("num_rows", "precision", "is_kept"), [(96, "bf16", True), (97, "bf16", False), (96, "fp32", False)]
)
def test_a_call_without_trl_keeps_what_was_measured_of_it_on_the_same_rows(tmp_path, num_rows, precision, is_kept):
    def result(contestants: list[str], num_rows: int, precision: str, commit: str) -> dict:
        return {
            "rows": {"num_rows": num_rows},
            "machine": {"processor": "one", "features": [], "cores": 2, "load_average_at_the_start": [0.1]},
            "versions": {"ours": {}, "trl": {"trl": "1.16"} if "trl_best" in contestants else None},
            "settings": {"precision": precision, "contestants": dict.fromkeys(contestants, {})},
            "commit": {"commit": commit},
            "runs": [{"contestant": name, "tokens_per_second": 1.0} for name in contestants if name != "ours"],
        }

    path = tmp_path / "speed_a.json"
    path.write_text(json.dumps(result(["ours", "trl_best"], num_rows, precision, "before")), encoding="utf-8")
    now = result(["ours"], 96, "bf16", "now")
    keep_trl(now, path)
    assert [run["contestant"] for run in now["runs"]] == ["trl_best"] * is_kept
    assert now.get("trl_measured_at") == ({"commit": "before"} if is_kept else None)
    now["runs"].append({"contestant": "ours", "tokens_per_second": 2.0})
    summary = summarize(replace(CASES["a"], task="rm"), now)
    assert list(summary) == ["ours", "trl_best"][: 1 + is_kept]


def test_operations_of_a_shape_by_hand():
    shape = MODELS["tiny"]  # hidden 64, 4 heads of 16, 2 key-value heads, MLP 128, 2 layers, vocabulary 1,024
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    assert shape.layer_matrix_parameters == 2 * layer
    assert plain_flops(shape, 10) == 6 * (2 * layer + 1_024 * 64) * 10
    attention = 3 * 2 * (4 * 4 * 16 * 10 * 10 / 2)  # 3 passes, 2 layers, 4 operations a pair, head and width
    unread = 6 * 3 * (64 * 64 + 3 * 64 * 128)  # of 3 tokens that are no targets, behind the last layer's attention
    assert model_flops(shape, 10, 7, 100) == 6 * 2 * layer * 10 - unread + 6 * 1_024 * 64 * 7 + attention


def test_case_a_has_the_size_that_it_says():
    shape = MODELS["small"]
    norms = 8 * (2 * 384 + 2 * 64) + 384
    assert round((shape.layer_matrix_parameters + shape.head_parameters + norms) / 1e6, 1) == 18.9


def test_layers_of_a_shape_can_be_fewer():
    assert shape_of("llama3_8b_16_layers").num_hidden_layers == 16
    assert shape_of("llama3_8b").num_hidden_layers == 32


def test_a_larger_card_gets_more_layers():
    layers = [llama_layers(gigabytes * 10**9, 8_192) for gigabytes in (24, 80, 141, 400)]
    assert layers == sorted(layers)
    assert layers[0] < layers[-1] == 32


def test_what_a_machine_lacks_is_said_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\nno-such-package==1; python_version >= '3.11'\nnumpy\n")
    monkeypatch.setattr(gpu_machine, "ROOT", tmp_path)
    assert gpu_machine.what_is_lacking(tmp_path, is_toy=True).needed == [
        "no-such-package is not installed: carry a wheel of it (benchmarks/gpu_wheels.sh, then gpu.sh --carry FOLDER)"
    ]


def test_a_machine_without_a_gpu_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine.gpu_memory, "total_bytes", lambda: None)
    needed = gpu_machine.what_is_lacking(tmp_path / "work", is_toy=False).needed
    assert any("no GPU is here" in sentence for sentence in needed)
    assert not (tmp_path / "work").exists()


def a_call(tmp_path: Path, seconds: float) -> gpu.Call:
    return gpu.Call(Bench(tmp_path, None), gpu.TOY, tmp_path / "gpu.json", seconds)


def test_a_part_that_fails_takes_no_other_with_it(tmp_path):
    call = a_call(tmp_path, 100)

    def fail(seconds: float) -> None:
        raise ContestantFailed("out of memory")

    call.stage("train tiny ours", fail)
    call.stage("log_probs", lambda seconds: {"limit": seconds})
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["train tiny ours"] == {"failed": "ContestantFailed: out of memory"}
    assert 90 < found["log_probs"]["limit"] < 100, "a part may take no longer than what is left"


def test_quick_forms_keep_what_is_measured_but_compile_nothing():
    for case in CASES.values():
        quick = quick_form(case)
        assert quick.kind == case.kind
        assert quick.trl == case.trl
        assert list(quick.ours) == (["ours"] if case.kind == "speed" else list(case.ours))
        for name, settings in quick.ours.items():
            assert settings == {**case.ours[name], "model.compile_layers": None}


@pytest.mark.parametrize(
    ("features", "in_float32"),
    [(["avx2"], True), (["avx2", "avx512f"], True), (["avx2", "avx512_bf16", "avx512f"], False), ([], False)],
)
def test_all_compute_in_float32_where_the_processor_has_no_products_of_bfloat16(features, in_float32):
    case = on_processor(CASES["a"], features)
    job = Job(Path("model"), Path("rows"), 8, 4, 512, precision=case.precision)
    assert trl_arguments(job, {}, Path("out")).get("bf16", True) is not in_float32
    words = our_words(job, {}, Path("out"), Path("cache"))
    assert words[words.index("--ds.param_dtype") + 1] == ("fp32" if in_float32 else "bf16")


def test_materials_of_unlike_rows_have_unlike_names():
    assert Material("text", 8).name != Material("text", 8, tokenizer_of="tiny").name


def test_steps_are_seen_while_a_process_runs(tmp_path):
    code = (
        "import time\nfile = open('steps.jsonl', 'w', buffering=1)\n"
        "for step in range(3):\n    print('{\"num_tokens\": %d}' % step, file=file)\n    time.sleep(0.2)\n"
    )
    words = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"]
    run = run_process(words, tmp_path / "steps.jsonl", tmp_path / "log.txt", {})
    assert [step["num_tokens"] for step in run.steps] == [0, 1, 2]
    assert run.step_seconds[2] - run.step_seconds[0] == pytest.approx(0.4, abs=0.15)
    assert run.cpu_seconds[2] < 0.4  # it sleeps
    assert run.peak_bytes > 2**20


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path):
    words = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(ContestantFailed, match="no such luck"):
        run_process(words, tmp_path / "steps.jsonl", tmp_path / "log.txt", {})


def a_result(tokens_per_second: float) -> dict:
    def spread(value: float) -> dict:
        return {"median": value, "least": value, "greatest": value, "runs": 5}

    def figures(speed: float, memory: float) -> dict:
        shares = {"model_flops": 0.5, "plain_flops": 0.6, "model_products": 0.7}
        return {"tokens_per_second": spread(speed), "peak_bytes": spread(memory), "shares_of_matrix_peak": shares}

    return {
        "case": "a",
        "title": "a small model",
        "kind": "speed",
        "machine": {"processor": "an abacus", "features": ["avx2", "amx_bf16"], "cores": 2},
        "matrix_peaks": [
            {"peak": 9e11, "peak_float32": 3e11, "model_products": {"layers": 8e11, "head": 6e11}},
        ],
        "versions": {"ours": {"torch": "2"}, "trl": {"trl": "1"}},
        "commit": {"commit": "0123456789abcdef", "package_is_changed": False},
        "settings": {
            "num_threads": 2,
            "precision": "bf16",
            "batch_size": 32,
            "micro_batch_size": 8,
            "contestants": {"ours": {"ds.packing_samples": True}, "trl_defaults": {}},
        },
        "runs": [{"contestant": "ours", "tokens_per_second": tokens_per_second, "peak_bytes": 2**30}],
        "summary": {"ours": figures(tokens_per_second, 2**30), "trl_defaults": figures(250.0, 2**31)},
    }


def test_shares_of_the_peak_and_of_what_the_models_own_products_reach():
    case, per_token = CASES["a"], (12_582_912 - 1_327_104 / 2) * 6  # operations of the layers' products
    head = 16_384 * 384 * 6
    rows = {"num_tokens": 100, "num_target_tokens": 50, "sum_of_squares": 0}
    measured = [{"peak": 1e12, "model_products": {"layers": 4e11, "head": 2e11}}]
    shares = shares_of_peak(case, rows, 1_000.0, measured)
    needed = per_token + head / 2  # of a token
    assert shares["model_flops"] == pytest.approx(needed * 1_000 / 1e12)
    assert shares["model_products"] == pytest.approx((per_token / 4e11 + head / 2 / 2e11) * 1_000)


def test_the_readme_holds_the_newest_table_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\nwords\n", encoding="utf-8")
    for speed in (1_000.0, 2_000.0):
        (tmp_path / "speed_a.json").write_text(json.dumps(a_result(speed)), encoding="utf-8")
        report.write_all(tmp_path, readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nwords\n")
    assert "| (a) a small model | ours | 2,000 (2,000–2,000) |  | 50% | 70% | 1.00 GiB | 5 |" in text
    assert "an abacus (avx2, amx_bf16), 2 cores" in text
    assert "at most 900 in bf16, 300 in float32; those of the model's layers 800, of its head 600." in text
    assert "| TRL, defaults | 250 (250–250) | 8.00× |" in text
    assert "ours `ds.packing_samples=True`; TRL, defaults no setting." in text
    assert "1,000" not in text
    assert (tmp_path / "speed.png").stat().st_size > 1_000


def test_it_is_said_which_case_is_of_which_commit():
    one, other, third = (a_result(1.0) | {"case": case} for case in "abc")
    other["commit"] = {"commit": "fedcba9876543210", "package_is_changed": True}
    assert "TRL 1; (a)(c) at commit 0123456789, (b) at commit fedcba9876 with changes." in report.markdown(
        [one, other, third]
    )


def test_a_kernel_is_measured_with_and_without():
    """The way without must not go through the kernel, else the comparison is of one thing with itself."""
    with patch.object(attention, "forward", wraps=attention.forward) as kernel:
        assert cpu_kernels.attention_times(torch.float32, [5, 9])["forward_milliseconds"] > 0
        num_calls = kernel.call_count
        assert cpu_kernels.without_kernel(attention, lambda: cpu_kernels.attention_times(torch.float32, [5, 9]))
    assert num_calls > 0
    assert kernel.call_count == num_calls


def test_shares_of_a_step_by_kind():
    milliseconds = Counter({"aten::mm": 60.0, "_ByOurKernelBackward": 25.0, "aten::copy_": 10.0, "unheard of": 5.0})
    shares = shares_by_kind(milliseconds)
    assert shares == {
        "products of matrices": 0.6,
        "attention": 0.25,
        "copies, casts, filling": 0.1,
        "the rest": 0.05,
    }
