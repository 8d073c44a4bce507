"""What diffattn_cuda.hf.register() changes in transformers, what it leaves, and when it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from support.diffllama import config, tokens, twins

pytest.importorskip("transformers", reason="transformers is not installed")

UNTOUCHED = """
import inspect, sys, tempfile
from diffattn_cuda import hf
assert "transformers" not in sys.modules  # importing it is register()'s business

import torch
from transformers import DiffLlamaForCausalLM
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from support.diffllama import config, tokens

calls = []
own = DiffLlamaAttention.forward

def spy(frame, event, argument):
    if event == "call" and frame.f_code is inspect.unwrap(own).__code__:
        calls.append(sorted(name for name, value in frame.f_locals.items() if value is not None))

def run(model):
    calls.clear()
    sys.setprofile(spy)
    with torch.no_grad():
        logits = model(x, attention_mask=mask).logits
    sys.setprofile(None)
    return logits, list(calls)

x, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
mask[1, :3] = 0
folder = tempfile.mkdtemp()
early = {way: DiffLlamaForCausalLM(config()).eval() for way in ("eager", "sdpa")}
early["eager"].save_pretrained(folder)
early["sdpa"].load_state_dict(early["eager"].state_dict())
before = {}
for way, model in early.items():
    model.set_attn_implementation(way)
    before[way] = run(model)
    assert len(before[way][1]) == 2

hf.register()
assert inspect.unwrap(DiffLlamaAttention.forward) is inspect.unwrap(own)
assert inspect.signature(DiffLlamaAttention.forward) == inspect.signature(own)
registered = DiffLlamaAttention.forward
hf.register()
assert DiffLlamaAttention.forward is registered

for way, model in early.items():
    late = DiffLlamaForCausalLM.from_pretrained(folder, attn_implementation=way)
    for after in (run(model), run(late)):
        assert torch.equal(after[0], before[way][0]) and after[1] == before[way][1], way
early["eager"].set_attn_implementation("diffattn")
got, calls_of_own = run(early["eager"])
assert not calls_of_own
torch.testing.assert_close(got, before["eager"][0])
early["eager"].set_attn_implementation("eager")
assert torch.equal(run(early["eager"])[0], before["eager"][0])
"""


def test_the_rest_stays_as_it_was() -> None:
    """In a process of its own, because register() cannot be undone.

    Under eager and sdpa DiffLlama's own forward runs, on the same arguments and with the same bits,
    in models that were made before register() and after it.
    """
    code = "import sys; sys.path.insert(0, 'tests')\n" + UNTOUCHED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def made_directly() -> Any:
    from transformers import DiffLlamaForCausalLM

    return DiffLlamaForCausalLM(config())


def made_from_config() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config(), attn_implementation="diffattn")


def made_by_a_name_in_the_config() -> Any:
    from transformers import DiffLlamaForCausalLM

    return DiffLlamaForCausalLM(config(attn_implementation="diffattn"))


def loaded() -> Any:
    from transformers import DiffLlamaForCausalLM

    state = DiffLlamaForCausalLM(config()).state_dict()
    return DiffLlamaForCausalLM.from_pretrained(
        None, config=config(), state_dict=state, attn_implementation="diffattn"
    )


@pytest.mark.parametrize(
    "make", [made_directly, made_from_config, made_by_a_name_in_the_config, loaded]
)
def test_every_way_to_make_a_model(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffattn_cuda import _hf_attention, hf

    hf.register()
    model, x = make().eval(), tokens(1, 9)
    model.set_attn_implementation("diffattn")
    with torch.no_grad():
        got = model(x).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(got, model(x).logits)
        monkeypatch.setattr(_hf_attention, "lambda_full", lambda module: torch.tensor(9.0))
        model.set_attn_implementation("diffattn")
        assert not torch.allclose(got, model(x).logits)  # so it was ours that ran


def test_another_model_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    twins("diffattn")
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes))
    model.set_attn_implementation("diffattn")
    with pytest.raises(
        NotImplementedError, match='attn_implementation="diffattn" is for DiffLlama'
    ):
        model(tokens(1, 5) % 99)


@pytest.mark.parametrize("version", ["5.22.1", "5.25.0", "5.25.0.dev0", "6.0.0", "4.57.3"])
def test_an_unknown_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from diffattn_cuda import hf

    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(ImportError, match=f"transformers is {version}; .* proven with 5.23 and"):
        hf._require_proven(hf._diffllama())


@pytest.mark.parametrize("name", ["DiffLlamaAttention", "DiffLlamaDecoderLayer", "DiffLlamaModel"])
def test_another_diffllama_of_a_known_version_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffattn_cuda import hf

    modeling = hf._diffllama()
    hf._require_proven(modeling)
    monkeypatch.setattr(getattr(modeling, name), "forward", lambda self, x: x)
    with pytest.raises(RuntimeError, match="is not that of the release.*pip install"):
        hf._require_proven(modeling)


def test_code_without_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffattn_cuda import hf

    modeling = hf._diffllama()
    scope: dict[str, Any] = {}
    exec("def forward(self): pass", scope)
    monkeypatch.setattr(modeling.DiffLlamaModel, "forward", scope["forward"])
    with pytest.raises(RuntimeError, match="is not that of the release"):
        hf._require_proven(modeling)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffattn_cuda import hf

    monkeypatch.setitem(sys.modules, "transformers.models.diffllama", None)
    monkeypatch.delitem(
        sys.modules, "transformers.models.diffllama.modeling_diffllama", raising=False
    )
    with pytest.raises(ImportError, match="needs transformers with DiffLlama: pip install"):
        hf.register()
