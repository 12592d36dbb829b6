import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from asked import asked_from_here_on
from small_pipeline import RECIPE, problem_file, saved, tokenizer, trained, untrained

from steerlift.extraction import extract as extract_module
from steerlift.extraction.config import ExtractConfig
from steerlift.extraction.extract import extract
from steerlift.problems.load import load_problems, load_worked_examples
from steerlift.problems.prompt import encode_prompt
from steerlift.problems.separation import fingerprints
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.provenance import package_version
from steerlift.records.runs import Journal
from steerlift.records.seen import SEEN
from steerlift.sampling import rollouts as rollouts_module
from steerlift.sampling.rollouts import prompt_ids
from steerlift.steering.models import architecture, decoder_layers
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.embedded import EmbeddedRecipe

COUNT = 12
OTHER = EmbeddedRecipe(hidden_size=48, layers=2, vocabulary=RECIPE.vocabulary)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Saved models (a base, its fine-tuned sibling, and one of another shape), and the file of problems."""
    root = tmp_path_factory.mktemp("models")
    models = {"base": trained("base"), "finetuned": trained("finetuned"), "wider": untrained(hidden_size=OTHER.hidden_size)}
    return {**{name: saved(root / name, model) for name, model in models.items()}, "problems": problem_file(root)}


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """extract() collects garbage before it loads a model: of what it made itself, not of all that pytest has imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def config(folders, tmp_path) -> ExtractConfig:
    return ExtractConfig(
        base_model_name=folders["base"],
        finetuned_checkpoint=folders["finetuned"],
        output_path=tmp_path / "out" / "v.safetensors",
        problems=folders["problems"],
        train_size=COUNT,
        max_completion_length=12,
        seed=3,
    )


def sampled_rows(path) -> list[dict]:
    """The problems of a completions file, without its first line, which has the settings."""
    header, *rows = Journal(path).read()
    assert list(header) == ["settings"]
    return rows


def sampled_ids(path) -> list[tuple[tuple[int, ...], list[int]]]:
    """Prompt and completion ids of a completions file."""
    rows = sampled_rows(path)
    assert all(len(row["completions"]) == 1 for row in rows)
    return [(prompt_ids(tokenizer(), row["prompt"]), row["completions"][0]["token_ids"]) for row in rows]


@torch.no_grad()
def naive_means(kind: str, pairs, chosen) -> torch.Tensor:
    """One sequence at a time, the test's own hooks: the mean state of each layer, shape (layers, hidden), float64."""
    model = trained(kind)
    states: list[list[torch.Tensor]] = [[] for _ in range(RECIPE.layers)]
    for prompt, completion in pairs:
        places = chosen(len(prompt), len(completion))
        handles = [
            layer.register_forward_hook(lambda _, __, out, to=states[i], at=places: to.append(out[0, at].double()))
            for i, layer in decoder_layers(model).items()
        ]
        model(torch.tensor([[*prompt, *completion]]))
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(layer).mean(0) for layer in states])


def test_the_files_say_what_was_averaged(config, folders):
    extraction = extract(config)
    folder = config.output_path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["v.completions.jsonl", "v.info.json", "v.safetensors"]
    loaded = SteeringVectors.load(config.output_path)
    assert all(torch.equal(loaded.layers[i], extraction.vectors.layers[i]) for i in range(RECIPE.layers))
    pairs = sampled_ids(folder / "v.completions.jsonl")
    assert len(pairs) == COUNT
    assert dict(loaded.metadata) == {
        "base_model": folders["base"],
        "finetuned_model": folders["finetuned"],
        "architecture": architecture(trained("base").config),
        "method": "mean_difference",
        "tokens": "completion",
        "tokens_averaged": str(sum(len(completion) for _, completion in pairs)),
        "problems": f"{COUNT} of {folders['problems']}, train",
        "few_shot": "0",
        "seed": "3",
        "steerlift": package_version(),
        SEEN: fingerprints(load_problems(folders["problems"], "train", COUNT, 3)),
    }
    info = json.loads((folder / "v.info.json").read_text())
    assert sorted(info) == ["layers", "provenance", "settings", "vectors"]
    assert info["vectors"] == dict(loaded.metadata)
    assert info["settings"]["output_path"] == str(config.output_path)
    assert info["provenance"]["seed"] == 3
    assert [row["layer"] for row in info["layers"]] == [0, 1]
    base = naive_means("base", pairs, lambda prompt, completion: range(prompt, prompt + completion))
    for row, mean in zip(info["layers"], base, strict=True):
        assert row["norm"] == pytest.approx(float(loaded.layers[row["layer"]].norm()), rel=1e-6)
        # The norm of a mean is at most the mean of the norms.
        assert row["residual_norm"] >= float(mean.norm())
        assert row["ratio"] == pytest.approx(row["norm"] / row["residual_norm"])


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"tokens": "completion"}, lambda prompt, completion: range(prompt, prompt + completion)),
        ({"tokens": "prompt"}, lambda prompt, _: range(1, prompt)),
        ({"tokens": "prompt", "include_first_position": True}, lambda prompt, _: range(prompt)),
        ({"tokens": "last"}, lambda prompt, _: [prompt - 1]),
    ],
)
def test_vectors_are_the_naive_difference_of_means(config, options, chosen):
    vectors = extract(replace(config, **options)).vectors
    if options["tokens"] == "completion":
        pairs = sampled_ids(config.output_path.with_name("v.completions.jsonl"))
    else:
        pairs = [(encode_prompt(tokenizer(), p.problem), []) for p in load_problems(config.problems, "train", COUNT, 3)]
        assert not config.output_path.with_name("v.completions.jsonl").exists()
    expected = naive_means("finetuned", pairs, chosen) - naive_means("base", pairs, chosen)
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(torch.stack(list(vectors.layers.values())).double(), expected, rtol=0, atol=1e-5)
    assert vectors.metadata["tokens_averaged"] == str(sum(len(chosen(len(p), len(c))) for p, c in pairs))


def test_the_completions_are_those_of_the_finetuned_model(config):
    extract(config)
    rows = sampled_rows(config.output_path.with_name("v.completions.jsonl"))
    assert [row["problem"]["problem"] for row in rows] == [p.problem for p in load_problems(config.problems, "train", COUNT, 3)]
    # Nearly always its one answer, where the base has three.
    assert sum(row["completions"][0]["text"].endswith("<answer>7</answer>") for row in rows) > COUNT / 2


def test_the_completions_are_not_graded(config, monkeypatch):
    monkeypatch.setattr(rollouts_module, "grade_all", None)
    extract(config)
    rows = sampled_rows(config.output_path.with_name("v.completions.jsonl"))
    assert all(set(row["completions"][0]) == {"text", "token_ids", "truncated"} for row in rows)


@pytest.mark.parametrize("tokens", ["completion", "prompt", "last"])
def test_worked_examples_stand_before_other_problems(config, tokens, capsys):
    config = replace(config, problems="embedded", few_shot=2, tokens=tokens, train_size=6)
    vectors = extract(config).vectors
    said = f"extracting from 6 training problems of embedded with 2 worked examples before each problem, {tokens} tokens"
    assert said in capsys.readouterr().err
    assert vectors.metadata["few_shot"] == "2"
    few_shot, problems = load_worked_examples("embedded", 2, 3), load_problems("embedded", "train", 8, 3)
    assert problems[:2] == few_shot
    prompts = [encode_prompt(tokenizer(), problem.problem, few_shot=few_shot) for problem in problems[2:]]
    if tokens == "completion":
        pairs = sampled_ids(config.output_path.with_name("v.completions.jsonl"))
        assert [list(prompt) for prompt, _ in pairs] == prompts
    else:
        expected = sum(map(len, prompts)) - 6 if tokens == "prompt" else 6
        assert vectors.metadata["tokens_averaged"] == str(expected)


def test_json_has_the_originals_shape(config):
    path = config.output_path.with_suffix(".json")
    vectors = extract(replace(config, output_path=path, problems="embedded")).vectors
    assert vectors.metadata["problems"] == f"{COUNT} of embedded, train"
    content = json.loads(path.read_text())
    assert list(content) == ["0", "1"]
    assert all(isinstance(x, float) for layer in content.values() for x in layer)
    assert content == {str(index): vector.tolist() for index, vector in vectors.layers.items()}
    assert len(content["0"]) == RECIPE.hidden_size
    assert path.with_name("v.info.json").is_file()


def test_increments_are_the_steps_between_layers(config):
    means = extract(config).vectors
    increments = extract(replace(config, method="increments")).vectors
    assert increments.metadata["method"] == "increments"
    assert torch.equal(increments.layers[0], means.layers[0])
    assert torch.equal(increments.layers[1], means.layers[1] - means.layers[0])


@pytest.mark.parametrize("tokens", ["completion", "prompt", "last"])
def test_equal_models_differ_by_exactly_nothing(config, folders, tokens):
    extraction = extract(replace(config, finetuned_checkpoint=folders["base"], tokens=tokens))
    assert all(torch.equal(vector, torch.zeros(RECIPE.hidden_size)) for vector in extraction.vectors.layers.values())
    assert [row["ratio"] for row in extraction.layers] == [0.0, 0.0]


def test_the_same_seed_gives_the_same_vectors_and_another_does_not(config):
    # Not the same bytes: safetensors writes its metadata in an order of its own.
    elsewhere = replace(config, output_path=config.output_path.with_name("again.safetensors"))
    first, again, other = (extract(c).vectors for c in (config, elsewhere, replace(config, seed=4)))
    assert first.metadata == again.metadata
    assert all(torch.equal(first.layers[i], again.layers[i]) for i in first.layers)
    assert not torch.equal(first.layers[0], other.layers[0])


def test_max_examples_takes_the_first_of_the_problems(config):
    few = extract(replace(config, max_examples=5))
    assert few.vectors.metadata["problems"] == f"5 of {config.problems}, train"
    rows = sampled_rows(config.output_path.with_name("v.completions.jsonl"))
    assert [row["problem"]["problem"] for row in rows] == [p.problem for p in load_problems(config.problems, "train", 5, 3)]


def test_a_stopped_extraction_asks_only_what_is_missing(config, monkeypatch):
    whole = extract(config).vectors
    path = config.output_path.with_name("v.completions.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]) + lines[8][:40])  # a kill in the middle of a line
    asked = asked_from_here_on(monkeypatch)
    again = extract(config).vectors
    assert asked == [json.loads(line)["problem"]["problem"] for line in lines[8:]]
    assert path.read_text() == "".join(lines)
    assert all(torch.equal(whole.layers[i], again.layers[i]) for i in whole.layers)
    extract(replace(config, temperature=0.5))
    assert len(asked) == len(lines) - 8 + COUNT, "another temperature, other completions"


def test_completions_of_an_earlier_extraction_are_not_sampled_again(config, monkeypatch, capsys):
    means = extract(replace(config, train_size=COUNT - 4)).vectors
    asked = asked_from_here_on(monkeypatch)
    more = replace(config, output_path=config.output_path.with_name("w.safetensors"), reuse=config.output_path)
    fewer = extract(replace(more, train_size=COUNT - 4, method="increments")).vectors
    assert asked == []
    assert torch.equal(fewer.layers[1], means.layers[1] - means.layers[0])
    extract(more)
    assert asked == [problem.problem for problem in load_problems(config.problems, "train", COUNT, 3)[-4:]]
    assert capsys.readouterr().err.count(f"{COUNT - 4} completions are those of {config.output_path}\n") == 2
    assert len(sampled_rows(more.output_path.with_name("w.completions.jsonl"))) == COUNT


def test_completions_that_do_not_fit_are_refused(config, folders):
    extract(config)
    more = replace(config, output_path=config.output_path.with_name("w.safetensors"), reuse=config.output_path)
    with pytest.raises(InputError, match=r"v.safetensors: its completions have other settings \(temperature, seed\); leave"):
        extract(replace(more, temperature=0.5, seed=4))
    with pytest.raises(InputError, match=r"other settings \(finetuned_model\)"):
        extract(replace(more, finetuned_checkpoint=folders["base"]))
    with pytest.raises(MissingInputError, match=r"--reuse nowhere.json: no nowhere.completions.jsonl"):
        extract(replace(more, reuse=Path("nowhere.json")))
    with pytest.raises(InputError, match="--tokens prompt needs no completions"):
        replace(more, tokens="prompt")
    with pytest.raises(InputError, match="has the completions of --output_path itself"):
        replace(more, output_path=config.output_path.with_suffix(".json"))
    assert len(sampled_rows(config.output_path.with_name("v.completions.jsonl"))) == COUNT
    assert not more.output_path.with_name("w.completions.jsonl").exists()


def test_models_of_two_shapes_are_refused_with_both_named(config, folders):
    with pytest.raises(InputError) as raised:
        extract(replace(config, base_model_name=folders["wider"], tokens="last"))
    size = len(tokenizer())
    assert str(raised.value) == (
        f"{folders['finetuned']} is qwen2, 2 layers, hidden size 32, vocabulary {size}; "
        f"{folders['wider']} is qwen2, 2 layers, hidden size 48, vocabulary {size}: "
        "a steering vector needs two models of one architecture"
    )
    assert not config.output_path.exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"finetuned_checkpoint": "./absent"}, MissingInputError, "absent: no such folder"),
        ({"base_model_name": "./absent"}, MissingInputError, "absent: no such folder"),
        ({"base_model_name": "wider"}, InputError, "two models of one architecture"),
        ({"output_path": "file/v.json"}, InputError, "cannot write"),
    ],
)
def test_what_cannot_work_is_refused_at_once(config, folders, tmp_path, monkeypatch, changes, error, message):
    def refuse(*_, **__):
        raise AssertionError("it sampled first")

    monkeypatch.setattr(rollouts_module, "render_prompt", refuse)
    (tmp_path / "file").write_text("")
    ((option, value),) = changes.items()
    value = tmp_path / value if option == "output_path" else folders.get(value, value)
    with pytest.raises(error, match=message) as raised:
        extract(replace(config, **{option: value}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 0}, "--train-size 0"),
        ({"max_examples": 0}, "--max_examples 0"),
        ({"batch_rows": 0}, "--batch_rows 0"),
        ({"batch_rows": -1}, "--batch_rows -1"),
        ({"few_shot": -1}, "--few_shot -1"),
    ],
)
def test_impossible_numbers_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


def test_one_model_is_in_memory_at_a_time(config, monkeypatch):
    loaded: list[weakref.ref[torch.nn.Module]] = []
    load_model = extract_module.load_model

    def load(*arguments):
        assert not [model for model in loaded if model() is not None]
        model = load_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(extract_module, "load_model", load)
    extract(config)
    assert len(loaded) == 2
