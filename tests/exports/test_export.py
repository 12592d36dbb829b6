"""The verb as people type it, and the files that hold vectors alone."""

import pytest
import torch
from exported import model_with_biases, random_vectors, saved_model
from launched import launch
from transformers import AutoModelForCausalLM

from steerlift.commands.main import main
from steerlift.exports.config import ExportConfig
from steerlift.exports.export import export
from steerlift.records.errors import InputError
from steerlift.steering.apply import steer
from steerlift.steering.vectors import SteeringVectors


@pytest.fixture
def sources(tmp_path):
    model = model_with_biases("qwen2")
    vectors = random_vectors(model)
    return model, saved_model(tmp_path / "base", model), vectors.save(tmp_path / "v.safetensors")


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_vectors_alone_are_written_times_the_weight_and_read_back(form, sources, tmp_path):
    _, base, path = sources
    exported = export(ExportConfig(form, str(base), path, tmp_path / f"out.{form}", 0.5, layers="0,2"))

    was, now = SteeringVectors.load(path), SteeringVectors.load(exported.path)

    assert list(now.layers) == [0, 2]
    assert all(torch.equal(now.layers[index], 0.5 * was.layers[index]) for index in (0, 2))
    if form == "safetensors":
        assert now.metadata["base_model"] == str(base)
        assert now.metadata["architecture"].startswith("qwen2, 3 layers")


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_hooks_as_lm_eval_places_them_steer_as_we_do(family, tmp_path):
    model = model_with_biases(family)
    vectors = random_vectors(model, without=(1,))
    base, path = saved_model(tmp_path / "base", model), vectors.save(tmp_path / "v.json")
    export(ExportConfig("pt", str(base), path, tmp_path / "v.pt", 0.5))

    entries = torch.load(tmp_path / "v.pt", weights_only=True)

    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), steer(model, vectors, 0.5):
        expected = model(ids).logits
    modules = dict(model.base_model.named_modules())
    handles = []
    for name, entry in entries.items():
        assert (entry["action"], entry["bias"], entry["head_index"]) == ("add", None, None)
        addition = entry["steering_vector"] * entry["steering_coefficient"]
        handles.append(modules[name].register_forward_hook(lambda _, __, out, addition=addition: out + addition))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    for handle in handles:
        handle.remove()


def test_slips_are_one_line(sources, tmp_path, monkeypatch, capsys):
    _, base, path = sources
    slips = [
        (["--format", "gguf", "--output-path", "v.json"], "expected a name that ends in .gguf"),
        (["--format", "json", "--output-path", "v.json", "--dtype", "float32"], "vectors are float32"),
        (["--format", "json", "--output-path", "v.json", "--layers", "7"], "got layer 7, the model has 0 to 2"),
        (["--format", "json", "--output-path", "v.json", "--weight", "nan"], "--weight nan"),
        (["--format", "json", "--output-path", "v.json", "--vectors", "absent.json"], "absent.json: no such file"),
    ]
    monkeypatch.chdir(tmp_path)
    for arguments, reason in slips:
        common = ["steerlift", "export", "--base-model-name", str(base), "--vectors", str(path)]
        monkeypatch.setattr("sys.argv", [*common, *arguments])
        assert main() == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert reason in line
    assert not list(tmp_path.glob("v.json"))


def test_vectors_of_another_model_are_refused(sources, tmp_path):
    _, base, _ = sources
    path = SteeringVectors({1: torch.ones(5)}).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="hidden size 5"):
        export(ExportConfig("gguf", str(base), path, tmp_path / "v.gguf"))


@pytest.mark.e2e
def test_the_command_bakes_and_says_how_well(sources, tmp_path):
    model, base, path = sources
    options = ["--format", "baked", "--base-model-name", str(base), "--vectors", str(path), "--weight", "0.5"]
    done = launch("-m", "steerlift", "export", *options, "--output-path", str(tmp_path / "baked"))

    assert done.returncode == 0, done.stderr
    *agreements, written = done.stdout.splitlines()
    assert len(agreements) == 3
    assert all("greedy tokens equal: 24 of 24" in line for line in agreements)
    assert written == f"wrote {tmp_path / 'baked'}"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), steer(model, SteeringVectors.load(path), 0.5):
        expected = model(ids).logits
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(tmp_path / "baked")(ids).logits, expected, rtol=1e-4, atol=1e-4
        )
