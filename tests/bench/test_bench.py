import re
from dataclasses import asdict, replace

import pytest
import torch

from bench import extraction, grpo_step, sampling, sweep
from bench.__main__ import DOCUMENT, main
from bench.grpo_case import Sizes
from bench.grpo_losses import TRL
from bench.measure import (
    OURS,
    DifferentResultsError,
    Times,
    interleaved,
    peak_memory,
    require_close,
    require_same_tokens,
)
from bench.setting import Setting, untrained_model
from bench.table import HEADINGS, Aim, Section, document, memory_row, rate_row, time_row
from steerlift.extraction.activations import mean_activations
from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import encode_prompt
from steerlift.steering.models import load_model, load_tokenizer

pytestmark = pytest.mark.e2e


TINY = Sizes(problems=2, group=2, repetitions=1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(untrained_model(tmp_path_factory.mktemp("bench") / "base"), seed=0, full=False)


def table_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_quick_run_writes_every_row_of_the_table(tmp_path, capsys):
    kept = DOCUMENT.read_bytes() if DOCUMENT.exists() else None
    main(["--quick", "--seed", "3", "--output", str(tmp_path / "performance.md")])
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert (DOCUMENT.read_bytes() if DOCUMENT.exists() else None) == kept  # a trial is no result

    headings, _, *rows = table_of(text)
    assert headings == list(HEADINGS)
    assert [row[0] for row in rows] == [
        "sampling, 8 x 4 completions",
        "GRPO, embedded model: loss and backward",
        "GRPO, embedded model: whole step",
        "GRPO, embedded model: whole step, half of the groups without signal",
        "extraction, 10 problems: time",
        "extraction, 10 problems: time",
        "extraction, 30 problems: time",
        "extraction, 30 problems: time",
        "sweep, 2 weights and base, 3 x 2 completions",
    ]
    for _, ours, alternative, ratio, cpu_ratio, aim in rows:
        assert re.fullmatch(r"[\d,.]+ (s|tokens/s)", ours)
        assert re.fullmatch(r".+: [\d,.]+ (s|tokens/s)", alternative)
        assert re.fullmatch(r"\*\*[\d,.]+x\*\*( of its time)?", ratio)
        assert re.fullmatch(r"[\d,.]+x", cpu_ratio)
        assert aim == "-"  # only the full sizes are judged
    assert {row[2].partition(":")[0] for row in rows} >= {TRL, extraction.BARE, extraction.KEPT, sweep.ALTERNATIVE}
    assert "the same tokens for 8 of 8 prompts" in text
    assert "the same tokens for 9 of 9 pairs" in text
    for line in ("- seed: 3", f"- versions: torch {torch.__version__}", "- command: `python -m bench --quick --seed 3"):
        assert f"\n{line}" in text


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sampling", "speed"])
    assert stopped.value.code == 2
    assert "got benchmark 'speed', expected sampling, grpo, extraction, sweep" in capsys.readouterr().err


@pytest.mark.parametrize("case", [replace(TINY, signal_share=0.5), replace(TINY, vocabulary=97)])
def test_ours_and_trl_have_the_same_loss_and_gradients(setting, case):
    loss, gradient = grpo_step.Sides(case, setting.folder).check()
    assert loss <= 1e-6
    assert gradient <= 1e-5


def test_losses_of_different_models_are_told_apart(setting):
    sides = grpo_step.Sides(TINY, setting.folder)
    with torch.no_grad():
        sides.models[OURS].get_output_embeddings().weight *= 1.01
    with pytest.raises(DifferentResultsError, match=r"gradients, embedded model: ours differs from the alternative's by"):
        sides.check()


def test_keeping_every_activation_gives_the_same_means(setting):
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    sequences = extraction.worked_sequences(setting.folder, extraction.Sizes(problems=7, repetitions=1))
    ours = mean_activations(model, sequences, "completion").state_LH
    torch.testing.assert_close(extraction.kept_means(model, sequences).double(), ours, rtol=1e-5, atol=1e-6)


def test_greedy_tokens_equal_those_of_generate_and_another_models_do_not(setting):
    model = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(str(setting.folder))
    prompts = [tuple(encode_prompt(tokenizer, problem.problem)) for problem in embedded_problems("test", 4, 0)]
    generate = sampling.Generate(model, tokenizer, prompts, 6)
    assert sampling.check_greedy(model, tokenizer, prompts, generate) == "4 of 4"
    other = load_model(str(setting.folder), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        other.get_output_embeddings().weight.neg_()
    with pytest.raises(DifferentResultsError, match="greedy tokens: the same in"):
        sampling.check_greedy(other, tokenizer, prompts, generate)


def test_both_sweeps_steer_by_every_weight(setting):
    swept = sweep.Sweep(setting, sweep.Sizes(problems=2, completions=1, weights=(8.0,), length=6))
    ours, original = swept.ours(0.0, completions=1), swept.original(0.0, completions=1)
    assert ours == original
    assert set(ours) == {0.0, 8.0}
    assert ours[0.0] != ours[8.0]


def test_ways_take_turns_after_a_warm_up():
    calls = []

    def way(name, work):
        def once():
            calls.append(name)
            return work

        return once

    times = interleaved({"a": way("a", 2.0), "b": way("b", 3.0)}, 2)
    assert calls == ["a", "b"] * 3
    assert times["a"].work == (2.0, 2.0)
    assert times["b"].per_second() == tuple(3.0 / seconds for seconds in times["b"].wall)
    interleaved({"a": way("a", 1.0)}, 1, warm=True)
    assert calls == [*["a", "b"] * 3, "a"]


def test_peak_memory_is_that_of_the_work_alone(setting):
    # Tied embeddings of 24 MiB are there before; the work adds a gradient for each of their two uses.
    large = replace(TINY, problems=1, vocabulary=32_768, completion_tokens=(1, 4))
    peak = peak_memory("grpo", OURS, asdict(large), setting.folder)
    assert 48 <= peak <= 96


def test_results_that_differ_are_no_benchmark():
    ones = torch.ones(3)
    assert require_close("means", ones, ones * 2, 0.6) == 0.5
    for ours in (ones * 2, torch.tensor([1.0, float("nan"), 1.0]), torch.ones(2)):
        with pytest.raises(DifferentResultsError, match="means: ours"):
            require_close("means", ours, ones, 1e-5)
    assert require_same_tokens("greedy", [(1, 2), (3,)], [[1, 2], [4]], 0.5) == "1 of 2"
    with pytest.raises(DifferentResultsError, match=r"greedy: the same in 1 of 2 rows, expected 99%; row 1 is \[3\], the"):
        require_same_tokens("greedy", [(1, 2), (3,)], [[1, 2], [4]], 0.99)


def test_rows_show_median_spread_and_ratios_turn_by_turn():
    ours = Times(wall=(1.0, 2.0, 4.0), cpu=(1.0, 1.0, 1.0), work=(300.0, 300.0, 300.0))
    theirs = Times(wall=(3.0, 4.0, 20.0), cpu=(2.0, 2.5, 3.0), work=(300.0, 300.0, 300.0))
    assert time_row("a step", ours, "trl", theirs, Aim(3)).cells() == [
        "a step",
        "2.00 (1.00 – 4.00) s",
        "trl: 4.00 (3.00 – 20.0) s",
        "**3.00x (2.00 – 5.00)**",
        "2.50x (2.00 – 3.00)",
        "at least 3: met",
    ]
    assert rate_row("tokens", "tokens/s", ours, "generate", theirs, Aim(3.1)).cells() == [
        "tokens",
        "150 (75.0 – 300) tokens/s",
        "generate: 75.0 (15.0 – 100) tokens/s",
        "**3.00x (2.00 – 5.00)**",
        "2.50x (2.00 – 3.00)",
        "at least 3.1: MISSED",
    ]
    cost = time_row("means", theirs, "bare", ours, Aim(1.15, "at most"), is_cost=True).cells()
    assert cost[3:] == ["**3.00x (2.00 – 5.00)** of its time", "2.50x (2.00 – 3.00)", "at most 1.15: MISSED"]
    memory = memory_row("peak", 1024.0, "all", 2560.0).cells()
    assert memory == ["peak", "1,024 MiB", "all: 2,560 MiB", "**2.50x**", "-", "-"]


def test_only_full_sizes_are_judged(setting):
    assert replace(setting, full=True).aim(1.15, "at most") == Aim(1.15, "at most")
    assert setting.aim(1.15, "at most") is None


def test_the_document_says_what_where_and_when():
    row = memory_row("peak", 0.5, "all", 2.0)
    text = document([Section("Extraction", ["What. " * 40], "they agree.", [row])], 5, "python -m bench", 0.25)
    assert max(map(len, text.partition("## Machine")[0].splitlines())) <= 120
    assert table_of(text)[2] == ["peak", "0.500 MiB", "all: 2.00 MiB", "**4.00x**", "-", "-"]
    assert "## Extraction\n\nWhat. What." in text
    assert "Same results: they agree." in text
    assert re.search(
        r"- machine: .+, \d+ cores, \d+ of them used \(.+\); load average of the minute before the start 0.2\n", text
    )
    assert re.search(r"- date: \d{4}-\d\d-\d\dT", text)
    assert TRL in text
