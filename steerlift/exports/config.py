"""The options of `steerlift export`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number
from steerlift.records.errors import InputError
from steerlift.steering.layer_ranges import parse_runs


@dataclass(frozen=True)
class ExportConfig:
    """Write steering vectors, or the model that they steer, in the form that another engine reads."""

    format: Literal["baked", "gguf", "json", "safetensors", "pt"]
    """baked: a checkpoint of the steered model, for any engine. gguf: a control vector for llama.cpp. json: the original's
    vectors. safetensors: vectors with their metadata. pt: for the steered models of lm-evaluation-harness."""
    base_model_name: str
    """Model that the vectors steer: hub id or folder."""
    vectors: Path
    """Steering vectors: .safetensors, .json or .gguf."""
    output_path: Path
    """File that is written, by the format's ending; baked: the checkpoint's folder."""
    weight: float = 1.0
    """Steering weight. baked, json and safetensors hold weight x vectors; pt keeps it beside them; gguf is given it on
    llama.cpp's command line."""
    layers: str = ""
    """Decoder layers to keep: 0-9,12 for instance; default: all that have a vector."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of a baked checkpoint; auto is the model's own."""
    device: str = "auto"
    """Where a baked checkpoint is compared with the steered model: auto, cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        check_number("weight", self.weight)
        parse_runs(self.layers, "--layers")
        if self.format == "baked":
            if self.output_path.exists() and not (self.output_path / "config.json").is_file():
                raise InputError(f"--output_path {self.output_path}: it is there and holds no model; name a new folder")
            if self.output_path.resolve() == Path(self.base_model_name).expanduser().resolve():
                raise InputError(f"--output_path {self.output_path}: it is the base model itself; name another folder")
        elif self.output_path.suffix != f".{self.format}":
            raise InputError(f"--output_path {self.output_path}: expected a name that ends in .{self.format}")
        elif self.dtype != "auto":
            raise InputError(
                f"--dtype {self.dtype} with --format {self.format}: vectors are float32; leave it out, or bake them"
            )
