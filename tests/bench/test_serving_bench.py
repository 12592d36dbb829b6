import re

import pytest

from bench.__main__ import SERVING_DOCUMENT, VLLM, _shown, main
from bench.serving_models import RANDOM, build
from bench.serving_server import running, vllm_version
from bench.serving_sync import HEADINGS as SYNC_HEADINGS
from bench.table import HEADINGS

NO_VLLM = "no .venv/vllm: make test-serving"


def test_an_interpreter_without_vllm_is_refused(tmp_path, capsys):
    missing = tmp_path / "python"
    with pytest.raises(SystemExit) as stopped:
        main(["serving", "--quick", "--vllm", str(missing)])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"--vllm {missing} is no Python that has vLLM; make .venv/installed-vllm sets one up")


def interpreter(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def test_an_interpreter_that_fails_has_no_vllm(tmp_path):
    assert vllm_version(interpreter(tmp_path / "works", "echo 0.32.0")) == "0.32.0"
    assert vllm_version(interpreter(tmp_path / "fails", "echo 0.32.0; exit 1")) == ""


@pytest.mark.e2e
def test_a_server_that_does_not_start_shows_what_it_has_said(setting, tmp_path):
    served = build(RANDOM, setting, tmp_path / "model")
    python = interpreter(tmp_path / "python", "echo no such weights; exit 1")
    with pytest.raises(RuntimeError, match="the server did not start:\nno such weights"), running(python, served, "eager"):
        pass


def test_the_document_names_no_interpreter_of_this_machine():
    assert _shown(["serving", "--vllm", "a/python", "--quick"]) == ["serving", "--vllm", "PYTHON", "--quick"]
    assert _shown(["serving", "--vllm=a/python", "--smollm2=b"]) == ["serving", "--vllm=PYTHON", "--smollm2=FOLDER"]


@pytest.mark.e2e
@pytest.mark.skipif(not VLLM.exists(), reason=NO_VLLM)
def test_a_quick_run_measures_a_real_server(tmp_path, capsys):
    kept = SERVING_DOCUMENT.read_bytes() if SERVING_DOCUMENT.exists() else None
    main(["serving", "--quick", "--seed", "3", "--output", str(tmp_path / "serving.md")])
    text = (tmp_path / "serving.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert (SERVING_DOCUMENT.read_bytes() if SERVING_DOCUMENT.exists() else None) == kept

    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == list(HEADINGS)
    model = "random Llama, eager"
    assert [row[0] for row in lines[2:6]] == [
        f"64 requests at once, 64 weights: {model}",
        f"64 requests at once, one weight: {model}",
        *[f"sweep, 6 weights and base, 2 x 4 completions: {model}"] * 2,
    ]
    assert [row[2].partition(":")[0] for row in lines[2:6]] == [*["unsteered"] * 2, "LocalSampler", "transformers generate"]
    for _, ours, alternative, ratio, cpu_ratio, turns, aim in lines[2:6]:
        assert re.fullmatch(r"[\d,.]+ (s|tokens/s)", ours)
        assert re.fullmatch(r".+: [\d,.]+ (s|tokens/s)", alternative)
        assert re.fullmatch(r"\*\*[\d,.]+x\*\*", ratio)
        assert (cpu_ratio, turns, aim) == ("-", "1", "-")
    assert lines[6] == list(SYNC_HEADINGS)
    name, parameters, *seconds, syncs = lines[8]
    assert (name, parameters, syncs) == (model, "4.7 million", "1")
    assert all(re.fullmatch(r"(\*\*)?[\d.]+(\*\*)?", cell) for cell in seconds)
    unwrapped = " ".join(text.split())
    assert f"the same tokens as LocalSampler for 64 of 64 requests ({model})" in unwrapped
    assert f"for 14 of 14 and 14 of 14 pairs ({model})" in unwrapped
    assert f"with them for 16 of 16 prompts ({model})" in unwrapped
    assert f"with vLLM {vllm_version(VLLM)} and" in unwrapped
