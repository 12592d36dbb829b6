from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import BertConfig, BertLMHeadModel

from steerlift.records.errors import InputError, MissingInputError
from steerlift.steering.models import checked_name, choose_attention, load_model
from steerlift.steering.precision import Precision, choose_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CPUINFO = Path("/proc/cpuinfo")


def attention_of(model) -> str:
    return model.config._attn_implementation


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 27).reshape(2, 12)).logits


@pytest.fixture
def flash_installed(tmp_path, monkeypatch):
    """A package of that name, which is looked for and never imported here."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is installed here")
def test_attention_without_flash_attention(monkeypatch):
    assert [choose_attention("auto", device) for device in (CPU, CUDA, MPS)] == ["sdpa"] * 3
    assert [choose_attention(name, CPU) for name in ("sdpa", "eager")] == ["sdpa", "eager"]
    with pytest.raises(InputError) as raised:
        choose_attention("flash_attention_2", CUDA)
    assert str(raised.value) == (
        "--attention flash_attention_2 cannot be used on cuda (the package flash_attn is not installed); "
        "expected auto, sdpa or eager"
    )


def test_flash_attention_is_for_cuda(flash_installed):
    assert choose_attention("auto", CUDA) == choose_attention("flash_attention_2", CUDA) == "flash_attention_2"
    assert [choose_attention("auto", device) for device in (CPU, MPS)] == ["sdpa", "sdpa"]
    with pytest.raises(InputError, match=r"^--attention flash_attention_2 cannot be used on cpu \(it needs CUDA\); expected"):
        choose_attention("flash_attention_2", CPU)


def test_an_unknown_attention_is_refused():
    with pytest.raises(InputError, match=r"^--attention flash is unknown; expected auto, flash_attention_2, sdpa, eager$"):
        choose_attention("flash", CPU)


def test_a_model_computes_with_the_attention_asked_for(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path / "model")
    loaded = {name: load_model(str(tmp_path / "model"), CPU, torch.float32, name) for name in (None, "sdpa", "eager")}
    assert {name: attention_of(model) for name, model in loaded.items()} == {None: "sdpa", "sdpa": "sdpa", "eager": "eager"}
    for name in (None, "sdpa"):
        torch.testing.assert_close(logits(loaded[name]), logits(loaded["eager"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_a_soft_cap_is_never_left_out(tmp_path, capsys, attention):
    # So low that it matters; transformers' sdpa would compute without it.
    model = tiny_model("gemma2", attn_logit_softcapping=0.1)
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path / "model")
    expected = logits(model)
    model.set_attn_implementation("sdpa")
    assert not torch.allclose(logits(model), expected, atol=1e-4)
    loaded = load_model(str(tmp_path / "model"), CPU, torch.float32, attention)
    assert torch.equal(logits(loaded), expected)
    said = f"model {tmp_path / 'model'}: its attention is soft-capped, which sdpa leaves out; computing it with eager\n"
    assert capsys.readouterr().err == (said if attention == "sdpa" else "")


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(MissingInputError) as raised:
        checked_name(str(tmp_path))
    assert str(raised.value) == (
        f"model {tmp_path}: a folder without config.json; expected a folder with a saved model, or a hub id (owner/name)"
    )
    assert checked_name("owner/name") == "owner/name"


def test_a_name_in_a_folder_that_is_here_is_said_once_to_be_a_hub_id(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/slip", "runs/slip", "owner/name"):
        assert checked_name(name) == name
    assert capsys.readouterr().err == "model runs/slip: no such folder here, so this is a hub id\n"


@pytest.mark.parametrize("decodes", [False, True])
def test_a_model_whose_tokens_see_those_after_them_is_refused(tmp_path, decodes):
    # transformers loads BERT as a language model either way.
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64, is_decoder=decodes
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    if decodes:
        load_model(str(tmp_path), torch.device("cpu"), torch.float32)
    else:
        with pytest.raises(InputError, match="its tokens see those after them, as BERT's do"):
            load_model(str(tmp_path), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("float32", CPU, Precision(torch.float32, None)),
        ("bfloat16", CPU, Precision(torch.bfloat16, None)),
        ("mixed", CUDA, Precision(torch.float32, torch.bfloat16)),
        ("auto", CUDA, Precision(torch.bfloat16, None)),
        ("auto", MPS, Precision(torch.float32, None)),
    ],
)
def test_precisions(name, device, expected):
    assert choose_precision(name, device) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16 autocast over float32 weights"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, "bfloat16 autocast over float32 weights"),
        ({"neon": True}, "float32"),
    ],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert str(choose_precision("auto", CPU)) == expected


@pytest.mark.skipif(not CPUINFO.is_file(), reason="only Linux lists the processor's instructions in /proc/cpuinfo")
def test_auto_on_this_cpu_agrees_with_the_kernels_own_list():
    flags = CPUINFO.read_text().split()
    mixed = "avx512_bf16" in flags or "amx_bf16" in flags
    assert str(choose_precision("auto", CPU)) == ("bfloat16 autocast over float32 weights" if mixed else "float32")


def test_auto_on_a_cpu_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert str(choose_precision("auto", CPU)) == "float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"^--dtype float16 is unknown; expected auto, float32, bfloat16, mixed$"):
        choose_precision("float16", CPU)


@pytest.mark.parametrize(("name", "products"), [("float32", torch.float32), ("mixed", torch.bfloat16)])
def test_products_are_computed_as_the_precision_says_and_gradients_are_those_of_the_weights(name, products):
    precision = choose_precision(name, CPU)
    linear = torch.nn.Linear(4, 4).to(precision.weights)
    with precision.context(CPU):
        output = linear(torch.ones(2, 4))
    assert output.dtype == products
    output.float().sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    assert linear(torch.ones(2, 4)).dtype == torch.float32


def test_precisions_are_readable():
    assert str(Precision(torch.bfloat16, None)) == "bfloat16"
    assert str(Precision(torch.float32, torch.bfloat16)) == "bfloat16 autocast over float32 weights"
