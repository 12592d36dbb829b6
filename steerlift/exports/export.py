"""`steerlift export`: checks that the vectors fit the model, and writes them as the asked format wants them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from steerlift.exports.baked import check_bakeable, write_baked
from steerlift.exports.config import ExportConfig
from steerlift.exports.gguf import write_gguf
from steerlift.exports.lm_eval import write_pt
from steerlift.exports.verify import compare
from steerlift.records.progress import say
from steerlift.records.runs import replacing_folder
from steerlift.steering.algebra import keep_layers, scale
from steerlift.steering.apply import check_fit
from steerlift.steering.layer_ranges import parse_layers
from steerlift.steering.models import DTYPES, architecture, choose_device, load_config
from steerlift.steering.vectors import SteeringVectors


@dataclass(frozen=True)
class Export:
    """What was written, and what to tell of it: how well it agrees, or the command that uses it."""

    path: Path
    notes: list[str]


def export(config: ExportConfig) -> Export:
    """Writes the file or folder. Raises InputError for vectors that do not fit and models that the format cannot hold."""
    vectors = SteeringVectors.load(config.vectors)
    model = load_config(config.base_model_name)
    if config.layers:
        vectors = keep_layers(vectors, parse_layers(config.layers, model.num_hidden_layers, "--layers"))
    check_fit(model, vectors, config.base_model_name)
    described = {"base_model": config.base_model_name, "architecture": architecture(model)}
    vectors = SteeringVectors(vectors.layers, {**vectors.metadata, **described})
    return Export(config.output_path, _write(config, vectors))


def _write(config: ExportConfig, vectors: SteeringVectors) -> list[str]:
    if config.format == "baked":
        return _bake(config, vectors)
    if config.format == "gguf":
        return write_gguf(config.output_path, vectors, config.weight)
    if config.format == "pt":
        return write_pt(config.output_path, vectors, config.weight, config.base_model_name)
    scale(vectors, config.weight).save(config.output_path)
    return [f"holds {config.weight} x the vectors of {config.vectors}: steer with weight 1"]


def _bake(config: ExportConfig, vectors: SteeringVectors) -> list[str]:
    model = load_config(config.base_model_name)
    check_bakeable(model, config.base_model_name)
    device = choose_device(config.device)
    dtype = DTYPES.get(config.dtype, model.dtype or torch.float32)
    with replacing_folder(config.output_path) as folder:
        write_baked(folder, config.base_model_name, vectors, config.weight, config.dtype)
        say(f"comparing it with {config.base_model_name} under steering, in float32")
        agreements = compare(config.base_model_name, folder, vectors, config.weight, dtype, device)
    return [str(agreement) for agreement in agreements]
