"""The real llama.cpp, through the package llama-cpp-py-sync, and GGUF files of Qwen2 models for it to read."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

F32 = 0


def _lack() -> str:
    """Why llama.cpp cannot be used here; empty where it can."""
    try:
        from llama_cpp_py_sync._cffi_bindings import get_lib

        get_lib()
    except (ImportError, OSError, RuntimeError) as error:
        return f"{error}; pip install llama-cpp-py-sync==0.11739 (it needs glibc 2.38)"
    return ""


needs_llama_cpp = pytest.mark.skipif(bool(_lack()), reason=_lack())


class LlamaCpp:
    """A model that llama.cpp has loaded."""

    def __init__(self, path: Path) -> None:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        self.ffi, self.lib = get_ffi(), get_lib()
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        assert self.model != self.ffi.NULL, f"llama.cpp cannot load {path}"
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))

    def probabilities(self, tokens: list[int], control: tuple[Path, float] | None = None) -> torch.Tensor:
        """The next token's distribution, shape (vocabulary,), under a control vector file at a scale, if one is given."""
        options = self.lib.llama_context_default_params()
        options.n_ctx = 512
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = F32
        options.flash_attn_type = 0
        context = self.lib.llama_init_from_model(self.model, options)
        assert context != self.ffi.NULL
        if control is not None:
            self._steer(context, *control)
        ids = self.ffi.new("int32_t[]", tokens)
        assert self.lib.llama_decode(context, self.lib.llama_batch_get_one(ids, len(tokens))) == 0
        row = self.lib.llama_get_logits_ith(context, -1)
        logits = np.frombuffer(self.ffi.buffer(row, 4 * self.vocabulary), dtype=np.float32).copy()
        self.lib.llama_free(context)
        return torch.softmax(torch.tensor(logits).double(), -1)

    def _steer(self, context: Any, path: Path, scale: float) -> None:
        # As common_control_vector_load of llama.cpp does it, which the library itself does not hold.
        width, layers = self.lib.llama_model_n_embd(self.model), self.lib.llama_model_n_layer(self.model)
        data = np.zeros((layers, width), dtype=np.float32)
        for tensor in gguf.GGUFReader(path).tensors:
            head, _, index = tensor.name.partition(".")
            assert head == "direction"
            assert int(index) > 0
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            assert list(tensor.shape) == [width]
            data[int(index) - 1] += scale * tensor.data
        buffer = self.ffi.from_buffer("float[]", data)
        assert self.lib.llama_set_adapter_cvec(context, buffer, data.size, width, 1, layers) == 0


def write_qwen2_gguf(path: Path, model: Any) -> Path:
    """A Qwen2 model as a float32 GGUF file without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
