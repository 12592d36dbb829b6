import json

import gguf
import numpy as np
import torch


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
