"""The options of `steerlift play`; the command line is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlift.records.checks import check_number


@dataclass(frozen=True)
class PlayConfig:
    """Open a local web page: base and steered answers side by side, as they are written."""

    base_model_name: str = "Qwen/Qwen2.5-7B-Instruct"
    """Base model: hub id or folder."""
    steering_vectors_path: Path = Path("steering_vectors.json")
    """Steering vectors: .safetensors, .json or .gguf."""
    engine: Literal["local", "vllm"] = "local"
    """Where to sample: here, or on a vLLM server of `steerlift serve`."""
    server: str = "http://127.0.0.1:8000"
    """With --engine vllm: the server of the base model."""
    problems: str = "math"
    """Problems to pick from: math, gsm8k, embedded, a .jsonl(.gz) file, or a folder with train and test files."""
    split: Literal["test", "dev"] = "test"
    """Which problems to pick from."""
    seed: int = 7111994
    """Seed of the choice of problems and of sampling."""
    data_dir: str | None = None
    """Folder that holds the problems (math/test.jsonl.gz ...); default: STEERLIFT_DATA, else the hub."""
    few_shot: int = 0
    """Worked training problems shown before each problem, chosen by the seed; give what the model was trained with."""
    temperature: float = 0.9
    """Sampling temperature; 0 is greedy."""
    max_completion_length: int = 512
    """Most tokens of a completion."""
    weight: float = 1.0
    """Steering weight that the page begins with."""
    largest_weight: float = 2.0
    """Right end of the slider and of the sweep."""
    sweep_completions: int = 8
    """Completions of each problem and weight in a sweep."""
    port: int = 8080
    """Port of the page, on 127.0.0.1 only."""
    open_browser: bool = True
    """Open the page in the browser."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        check_number("few_shot", self.few_shot, least=0)
        check_number("temperature", self.temperature, least=0)
        check_number("max_completion_length", self.max_completion_length, least=1)
        check_number("largest_weight", self.largest_weight, above=0)
        check_number("weight", self.weight, least=0, most=self.largest_weight)
        check_number("sweep_completions", self.sweep_completions, least=1)
        check_number("port", self.port, least=1, most=65535)
