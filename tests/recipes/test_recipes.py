import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from steerlift.records.errors import InputError
from steerlift.steering.vectors import SteeringVectors

REPOSITORY = Path(__file__).parents[2]


def test_no_sum_of_the_test_is_trained_on_whatever_its_order(recipe, tmp_path):
    arithmetic = recipe("arithmetic")
    arithmetic.main(tmp_path)

    def numbers(kind, split):
        rows = [json.loads(line) for line in (tmp_path / kind / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            assert sum(map(int, row["unique_id"].partition("/")[2].split("+"))) == int(row["answer"])
            assert row["solution"].endswith(f"= {row['answer']}")
        return [tuple(map(int, row["unique_id"].partition("/")[2].split("+"))) for row in rows]

    test = {tuple(sorted(two)) for two in numbers("sums", "test")}
    assert len(test) == 400
    for kind in ("sums", "threes", "warmup"):
        assert not test & {tuple(sorted(some[:2])) for some in numbers(kind, "train")}
    of_hundreds = [{tuple(sorted(two)) for two in numbers("hundreds", split)} for split in ("train", "test")]
    assert [len(pairs) for pairs in of_hundreds] == [1500, 400]
    assert not of_hundreds[0] & of_hundreds[1]


def test_the_raw_mean_of_increments_is_what_they_were_taken_from(recipe):
    mean = SteeringVectors({layer: torch.randn(8) for layer in range(5)}, {"method": "mean_difference", "tokens": "completion"})
    again = recipe("raw_mean").raw_mean(mean.increments())
    assert again.metadata == mean.metadata
    for layer, vector in mean.layers.items():
        torch.testing.assert_close(again.layers[layer], vector)
    with pytest.raises(InputError, match="expected increments of every layer"):
        recipe("raw_mean").raw_mean(mean)


def test_eight_bits_are_those_of_gguf(recipe):
    torch.manual_seed(0)
    weight = torch.randn(6, 96) * torch.logspace(-3, 1, 6)[:, None]
    weight[2, 32:64] = 0
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    ours = recipe("eight_bit").rounded(weight).numpy()
    # A number halfway between two steps may go the other way.
    assert (ours == expected).mean() > 0.99
    np.testing.assert_allclose(ours, expected, atol=np.abs(weight.numpy()).max() / 127 * 1.001)


def test_a_stage_runs_once_and_the_seconds_of_every_try_count(recipe, tmp_path):
    def run(commands, only=""):
        script = f"set -eu; source recipes/stages.sh; {commands}"
        environment = {**os.environ, "RUN": str(tmp_path), "ONLY": only}
        subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=environment, check=False, capture_output=True)
        return (tmp_path / "stages").read_text()

    assert run("stage copied touch $RUN/first").startswith("copied ")
    once = run("stage copied touch $RUN/second; stage other touch $RUN/third", only="copied")
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
    assert not (tmp_path / "third").exists()
    # A process that a signal ends makes bash say so, in the place of its seconds; nothing of the recipe runs after it.
    for _ in range(2):
        lines = run("stage killed bash -c 'kill $$'; touch $RUN/after")
    assert lines.startswith(once)
    assert lines.count("killed-stopped ") == 2
    assert not (tmp_path / "after").exists()
    seconds = recipe("keep")._seconds(tmp_path / "stages")
    assert {name: len(values) for name, values in seconds.items()} == {"copied": 3, "killed-stopped": 3}
