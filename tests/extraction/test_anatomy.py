import json
import math
import sys

import pytest
import torch
from small_pipeline import RECIPE, problem_file, saved, tokenizer, trained, untrained
from tiny_models import HIDDEN, random_prompts, tiny_model
from torch import nn

from steerlift.commands.main import main
from steerlift.extraction import divergence as divergence_module
from steerlift.extraction.activations import TokenSequence, mean_activations
from steerlift.extraction.anatomy import (
    cosines_with,
    final_norm,
    layer_cosines,
    token_scores,
    token_text,
    tokens_of_layers,
)
from steerlift.extraction.divergence import CompletionDivergence, Place, divergences, largest, mean_by_position
from steerlift.extraction.extract import mean_difference
from steerlift.extraction.inspect import inspect
from steerlift.extraction.inspect_config import InspectConfig
from steerlift.problems.prompt import encode_prompt
from steerlift.records.errors import InputError
from steerlift.steering.models import architecture
from steerlift.steering.vectors import SteeringVectors

# --- cosines ---


def test_cosines_between_layers():
    vectors = SteeringVectors({1: torch.tensor([1.0, 0.0]), 4: torch.tensor([3.0, 3.0]), 5: torch.tensor([-0.1, 0.0])})
    half = math.sqrt(0.5)
    expected = [[1, half, -1], [half, 1, -half], [-1, -half, 1]]
    torch.testing.assert_close(layer_cosines(vectors), torch.tensor(expected, dtype=torch.float64))


def test_a_vector_of_zeros_has_cosine_0():
    cosines = layer_cosines(SteeringVectors({0: torch.zeros(3), 1: torch.ones(3)}))
    assert cosines.tolist() == [[0, 0], [0, pytest.approx(1)]]


def test_cosines_with_another_are_of_the_layers_that_both_have():
    vectors = SteeringVectors({0: torch.tensor([1.0, 0.0]), 1: torch.tensor([1.0, 1.0]), 2: torch.ones(2)})
    other = SteeringVectors({1: torch.tensor([0.0, 2.0]), 2: torch.tensor([-1.0, -1.0]), 3: torch.ones(2)})
    assert cosines_with(vectors, other, "b.json") == {1: pytest.approx(math.sqrt(0.5)), 2: pytest.approx(-1)}


def test_vectors_that_cannot_be_compared_are_refused():
    vectors = SteeringVectors({0: torch.ones(4)})
    with pytest.raises(InputError, match=r"--others b.json: got vectors of hidden size 3, expected 4; give vectors"):
        cosines_with(vectors, SteeringVectors({0: torch.ones(3)}), "b.json")
    with pytest.raises(InputError, match=r"--others b.json: got layers 1, 2, expected some of 0; give vectors"):
        cosines_with(vectors, SteeringVectors({1: torch.ones(4), 2: torch.ones(4)}), "b.json")


# --- tokens ---


@torch.no_grad()
def test_scores_are_the_vector_times_the_norms_gain_through_the_head(family):
    final_norm(family).weight.copy_(torch.randn(HIDDEN))
    vector = 0.01 * torch.randn(HIDDEN)
    # Gemma keeps its gain less 1.
    gain = family.model.norm.weight + ("Gemma" in type(family).__name__)
    expected = family.lm_head.weight @ (gain * vector / vector.square().mean().sqrt())
    torch.testing.assert_close(token_scores(family, vector), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_bias_of_the_norm_does_not_count_and_a_missing_gain_is_1(qwen2):
    vector = torch.randn(HIDDEN)
    qwen2.model.norm = nn.LayerNorm(HIDDEN)
    qwen2.model.norm.bias.copy_(torch.randn(HIDDEN))
    centred = vector - vector.mean()
    expected = qwen2.lm_head.weight @ (centred / centred.std(correction=0))
    torch.testing.assert_close(token_scores(qwen2, vector), expected, rtol=1e-3, atol=1e-3)
    qwen2.model.norm = nn.LayerNorm(HIDDEN, elementwise_affine=False)
    expected = qwen2.lm_head.weight @ (vector / vector.square().mean().sqrt())
    torch.testing.assert_close(token_scores(qwen2, vector), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_vector_towards_a_token_promotes_it_and_the_opposite_suppresses_it():
    model = untrained()
    seven = tokenizer().encode("7", add_special_tokens=False)[0]
    towards = model.get_output_embeddings().weight[seven] / final_norm(model).weight
    vectors = SteeringVectors({0: towards, 1: -0.001 * towards})
    found = tokens_of_layers(model, tokenizer(), vectors, 3)
    (first, *others), lowest = found[0].promoted, found[0].suppressed
    assert (first.id, first.text) == (seven, "7")
    assert first.score > others[0].score > others[1].score > lowest[2].score > lowest[1].score > lowest[0].score
    assert found[1].suppressed[0].text == "7"
    assert [score.id for score in found[1].promoted] == [score.id for score in lowest]


def test_a_vector_of_zeros_promotes_nothing():
    found = tokens_of_layers(untrained(), tokenizer(), SteeringVectors({1: torch.zeros(RECIPE.hidden_size)}), 3)
    assert (found[1].promoted, found[1].suppressed) == ([], [])


def test_rows_of_the_head_that_are_no_token_are_never_named():
    model = untrained()
    size = len(tokenizer())
    model.resize_token_embeddings(size + 40, mean_resizing=False)
    vectors = SteeringVectors({0: torch.randn(RECIPE.hidden_size)})
    found = tokens_of_layers(model, tokenizer(), vectors, size + 40)
    assert sorted(score.id for score in found[0].promoted) == list(range(size))


def test_a_token_that_is_half_a_character_is_called_by_its_name():
    pieces = tokenizer().encode("🎄", add_special_tokens=False)
    assert len(pieces) > 1
    assert [token_text(tokenizer(), i) for i in pieces] == tokenizer().convert_ids_to_tokens(pieces)
    newline = tokenizer().encode("\n", add_special_tokens=False)
    assert token_text(tokenizer(), newline[0]) == "\n"


# --- KL ---


def some_sequences() -> list[TokenSequence]:
    lengths = [(5, 3), (1, 4), (12, 1), (3, 19)]
    return [TokenSequence((*random_prompts(p)[0], *random_prompts(c)[0]), p) for p, c in lengths]


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])  # gemma2 caps its logits
def test_the_kl_is_that_of_a_naive_loop(name, monkeypatch):
    finetuned, base = tiny_model(name), tiny_model(name, seed=1)
    sequences = some_sequences()
    monkeypatch.setattr(divergence_module, "CHUNK_TOKENS", 2)
    done: list[int] = []
    found = divergences(finetuned, base, sequences, done.append)
    assert done == [1, 1, 1, 1]
    for one, sequence in zip(found, sequences, strict=True):
        ids = torch.tensor([sequence.ids])
        ours, theirs = (model(ids).logits[0].double().softmax(-1) for model in (finetuned, base))
        for position, token in enumerate(sequence.ids[sequence.start :]):
            p, q = ours[sequence.start + position - 1], theirs[sequence.start + position - 1]
            assert one.kl_C[position] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)
            assert one.finetuned_C[position].exp() == pytest.approx(float(p[token]), rel=1e-3)
            assert one.base_C[position].exp() == pytest.approx(float(q[token]), rel=1e-3)
            assert int(one.base_choice_C[position]) == int(q.argmax())
        assert len(one.kl_C) == len(sequence.ids) - sequence.start


def test_a_model_does_not_differ_from_itself(qwen2):
    found = divergences(qwen2, qwen2, some_sequences())
    assert all(one.kl_C.tolist() == [0.0] * len(one.kl_C) for one in found)


def of_kl(*values: float) -> CompletionDivergence:
    numbers = torch.tensor(values)
    return CompletionDivergence(numbers, -numbers, -numbers, numbers.long())


def test_means_by_position_count_who_gets_there():
    means, counts = mean_by_position([of_kl(1.0, 2.0, 6.0), of_kl(3.0), of_kl(0.5, 4.0)])
    assert means.tolist() == [1.5, 3.0, 6.0]
    assert counts.tolist() == [3, 2, 1]


def test_the_largest_come_first():
    found = [of_kl(1.0, 2.0, 6.0), of_kl(3.0), of_kl(0.5, 4.0)]
    assert largest(found, 3) == [Place(0, 2), Place(2, 1), Place(1, 0)]
    assert len(largest(found, 100)) == 6


# --- the command ---


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base, a fine-tuned model, problems, and vectors of the two over the prompts."""
    root = tmp_path_factory.mktemp("made")
    models = {name: saved(root / name, trained(name)) for name in ("base", "finetuned")}
    problem_file(root)
    ids = [TokenSequence(tuple(encode_prompt(tokenizer(), f"Compute {a}+1-{a}.")), 1) for a in range(4)]
    means = [mean_activations(trained(name), ids, "completion") for name in ("base", "finetuned")]
    origin = {"base_model": models["base"], "finetuned_model": models["finetuned"], "method": "mean_difference", "seed": "3"}
    origin["architecture"] = architecture(trained("base").config)
    vectors = mean_difference(*means, origin)
    vectors.save(root / "vectors.safetensors")
    vectors.increments().save(root / "increments.safetensors")
    vectors.save(root / "bare.json")
    return root


def config_of(root, name="vectors.safetensors", **changes) -> InspectConfig:
    options = {"problems": str(root / "problems.jsonl"), "split": "train", "num_problems": 12, "max_completion_length": 12}
    return InspectConfig(root / name, **{**options, **changes})


def test_everything_that_is_asked_for_is_measured(made, tmp_path):
    config = config_of(made, others=(made / "increments.safetensors",), tokens=4, output_path=tmp_path / "new" / "a.json")
    inspection = inspect(config)
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == inspection
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000
    assert inspection["left_out"] == []
    vectors = SteeringVectors.load(made / "vectors.safetensors")
    for row, (index, norm) in zip(inspection["layers"], vectors.norms().items(), strict=True):
        assert (row["layer"], row["norm"]) == (index, norm)
        assert row["ratio"] == pytest.approx(norm / row["residual_norm"])
        assert (len(row["promoted"]), len(row["suppressed"])) == (4, 4)
    (other,) = inspection["others"]
    assert (other["method"], other["seed"], other["cosines"][0]) == ("increments", "3", pytest.approx(1))
    assert inspection["settings"]["base_model_name"] == str(made / "base")
    divergence = inspection["divergence"]
    positions = divergence["positions"]
    assert (positions[0]["completions"], divergence["completions"]) == (12, 12)
    assert divergence["tokens"] == sum(row["completions"] for row in positions)
    total = sum(row["kl"] * row["completions"] for row in positions)
    assert divergence["mean"] == pytest.approx(total / divergence["tokens"])
    # The base is undecided where the thinking is opened or skipped, and at the answer.
    assert {row["position"] for row in sorted(positions, key=lambda row: -row["kl"])[:2]} == {0, 3}
    assert len(divergence["largest"]) == 4
    for token in divergence["largest"]:
        assert token["finetuned_probability"] > token["base_probability"]
        assert token["before"].endswith("<answer>" if token["position"] == 3 else "<|assistant|>")


def test_vectors_that_name_no_models_give_norms_and_cosines(made, tmp_path, capsys):
    inspection = inspect(config_of(made, "bare.json", output_path=tmp_path / "a.json"))
    (line,) = inspection["left_out"]
    assert line.startswith("no base model (the vectors name none): residual norms, tokens and KL are left out; give --base")
    assert capsys.readouterr().err == f"{line}\n"
    assert all(set(row) == {"layer", "norm"} for row in inspection["layers"])
    assert "divergence" not in inspection
    assert (tmp_path / "a.png").is_file()


def test_a_fine_tuned_model_that_is_gone_leaves_out_the_kl_alone(made, tmp_path):
    vectors = SteeringVectors.load(made / "vectors.safetensors")
    moved = SteeringVectors(vectors.layers, {**vectors.metadata, "finetuned_model": str(tmp_path / "gone")})
    moved.save(tmp_path / "moved.safetensors")
    problems = str(made / "problems.jsonl")
    inspection = inspect(config_of(tmp_path, "moved.safetensors", problems=problems))
    (line,) = inspection["left_out"]
    assert line.startswith(f"no fine-tuned model (model {tmp_path / 'gone'}: no such folder;")
    assert "ratio" in inspection["layers"][0]
    assert "divergence" not in inspection


def test_vectors_that_do_not_fit_the_base_are_refused_before_the_work(made, tmp_path):
    output = tmp_path / "a.json"
    wrong = SteeringVectors({0: torch.ones(HIDDEN)}).save(tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=r"steering vectors have hidden size 64, .* has 32"):
        inspect(config_of(tmp_path, wrong.name, base_model_name=str(made / "base"), output_path=output))
    assert not output.exists()


@pytest.mark.e2e
def test_the_command_prints_tables_and_paths(made, monkeypatch, capsys):
    options = ["--problems", str(made / "problems.jsonl"), "--split", "train", "--num_problems", "6", "--tokens", "3"]
    vectors = str(made / "vectors.safetensors")
    others = [part for name in ("increments.safetensors", "bare.json") for part in ("--others", str(made / name))]
    options += ["--max_completion_length", "12", *others]

    def run(*parts: str) -> tuple[int, str, str]:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(sys, "argv", ["steerlift", "inspect", *parts])
        return main(), *capsys.readouterr()

    code, out, _ = run(vectors, *options)
    assert code == 0
    json_path = made / "vectors.inspect.json"
    assert out.splitlines()[-2:] == [f"wrote {json_path}", f"wrote {json_path.with_suffix('.png')}"]
    assert "base would say" in out
    assert all(f"cosine with {made.name}/{name}: " in out for name in ("increments", "bare"))
    first = json_path.with_suffix(".png").read_bytes()
    assert run(vectors, *options)[0] == 0
    assert json_path.with_suffix(".png").read_bytes() == first
    for parts, message in [
        ((str(made / "absent.safetensors"),), "error: steering vectors "),
        ((vectors, "--base_model_name", "./absent"), "error: model ./absent: no such folder"),
        ((vectors, "--tokens", "0"), "error: --tokens 0: expected at least 1"),
        ((vectors, "--output_path", "a.txt"), "error: --output_path a.txt: expected a name that ends in .json"),
    ]:
        code, out, err = run(*parts)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(message)
