import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model

from steerlift.records.errors import InputError
from steerlift.serving.whole_weights import fitting_weights, shapes_of


def saved(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_what_transformers_saves_of_every_family_is_whole(family, tmp_path):
    tensors = saved(family, tmp_path)

    chosen = fitting_weights(tensors, shapes_of(family.config), "w")

    assert chosen.keys() == tensors.keys()
    assert all(chosen[name] is tensors[name] for name in chosen)


def test_tied_weights_are_loaded_once_under_whichever_name_they_come():
    model = tiny_model("qwen2", tie_word_embeddings=True)
    shapes = shapes_of(model.config)
    both = dict(model.state_dict())
    assert "lm_head.weight" in both

    chosen = fitting_weights(both, shapes, "w")

    assert "lm_head.weight" not in chosen
    assert len(chosen) == len(both) - 1


def test_an_untied_head_is_not_left_out():
    model = tiny_model("qwen2", tie_word_embeddings=False)
    tensors = dict(model.state_dict())
    del tensors["lm_head.weight"]
    with pytest.raises(InputError, match=r"w: tensor lm_head\.weight is missing"):
        fitting_weights(tensors, shapes_of(model.config), "w")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"), "k_proj.weight is missing"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}), r"model.norm.weight has shape \(5,\), expected"),
        (lambda tensors: tensors.update({"base_model.x": torch.ones(5)}), "no tensor base_model.x"),
    ],
)
def test_another_set_of_tensors_is_refused(change, reason, qwen2):
    tensors = dict(qwen2.state_dict())
    change(tensors)
    with pytest.raises(InputError, match=reason):
        fitting_weights(tensors, shapes_of(qwen2.config), "weights f")
