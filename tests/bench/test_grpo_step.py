from dataclasses import asdict, replace

import pytest
import torch

from bench import grpo_case, grpo_step
from bench.grpo_case import Sizes
from bench.measure import OURS, DifferentResultsError, peak_memory, total
from steerlift.steering.models import decoder_body, load_tokenizer

pytestmark = pytest.mark.e2e

TINY = Sizes(problems=2, group=2, repetitions=1)


@pytest.mark.parametrize("case", [replace(TINY, signal_share=0.5), replace(TINY, vocabulary=97)])
def test_ours_and_trl_have_the_same_greedy_tokens_loss_and_gradients(setting, case):
    same, loss, gradient = grpo_step.Sides(case, setting.folder).check()
    assert same.endswith(": 4 of 4")
    assert loss <= 5e-6
    assert gradient <= 1e-5


def test_sides_with_different_models_are_told_apart(setting):
    sides = grpo_step.Sides(TINY, setting.folder)
    weight = decoder_body(sides.sides[OURS].model).norm.weight
    with torch.no_grad():
        weight *= 1.01  # scales all logits: the likeliest tokens stay the same
    with pytest.raises(DifferentResultsError, match=r"gradients, embedded model: ours differs from the alternative's by"):
        sides.check()
    with torch.no_grad():
        weight.neg_()
    with pytest.raises(DifferentResultsError, match="greedy tokens, embedded model: the same in"):
        sides.check()


@pytest.mark.parametrize("case", [TINY, replace(TINY, vocabulary=97)])
def test_both_sides_generate_completions_of_full_length(setting, case):
    for side in grpo_step.Sides(case, setting.folder).sides.values():
        rows = side.generate()
        assert [len(row) for row in rows] == [case.completion_tokens[1]] * 4
        assert rows[0] != rows[1]  # sampled, not the likeliest


def test_a_step_is_the_sum_of_its_phases(setting):
    ours, theirs = grpo_step.Sides(replace(TINY, repetitions=2), setting.folder).phases()
    assert list(ours) == list(theirs) == [grpo_step.GENERATION, grpo_step.LOSS, grpo_step.UPDATE]
    whole = total(ours.values())
    assert len(whole.wall) == 2
    assert whole.wall == tuple(map(sum, zip(*(times.wall for times in ours.values()), strict=True)))
    assert whole.cpu == tuple(map(sum, zip(*(times.cpu for times in ours.values()), strict=True)))


def test_a_saved_model_is_measured_as_it_is(setting):
    case = grpo_case.smollm2(setting.folder)
    assert case.vocabulary == len(load_tokenizer(str(setting.folder)))
    model, saved = grpo_case.build_model(case, setting.folder / "elsewhere"), grpo_case.build_model(TINY, setting.folder)
    for one, other in zip(model.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_without_smollm2_the_document_says_so(setting):
    section = grpo_step.run(setting, [TINY])
    assert "SmolLM2-135M-Instruct was NOT run" in section.text[-1]
    assert not any("SmolLM2" in row.measured for row in section.rows)


def test_peak_memory_is_that_of_the_work_alone(setting):
    # Tied embeddings of 24 MiB are there before; the work adds a gradient for each of their two uses.
    large = replace(TINY, problems=1, vocabulary=32_768, completion_tokens=(1, 4))
    peak = peak_memory("grpo loss", OURS, asdict(large), setting.folder)
    assert 48 <= peak <= 96
    # One gradient of all weights and AdamW's two averages, of the embeddings alone 72 MiB.
    assert peak_memory("grpo steps", OURS, asdict(large), setting.folder) >= max(peak, 72)
