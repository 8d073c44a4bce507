"""transformers' DiffLlama on the fused kernels: same weights, same logits, same generated tokens.

    from diffattn_cuda import hf

    hf.register()
    model = DiffLlamaForCausalLM.from_pretrained(name, attn_implementation="diffattn")

DiffLlama calls its attention function twice, once for each half of V, and both calls compute both
maps. The fused kernel needs all of V at once, so it replaces the module's forward and not the
function.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from typing import Any, NoReturn

NAME = "diffattn"
# The versions of transformers that tests/test_hf_*.py have proven, each with a digest of the code
# that this module replaces or that calls it.
PROVEN = {
    "5.23": "968c4be837a34d029d186d42a8e061fc141ba44ed26c4cf5a53c81e419544729",
    "5.24": "beb795fabd2f56f2771b2e9840060deac631f7287d2e78d1665f8c27a020dd6a",
}
_MARK = "_is_diffattn"  # of the forward that register() puts into DiffLlamaAttention
_REMEDY = f"pip install 'transformers=={[*PROVEN][-1]}.*'"


def register() -> None:
    """Makes attn_implementation="diffattn" known to transformers, for DiffLlama.

    Every DiffLlama takes it from then on, however and whenever it was made: in from_pretrained,
    from_config, the config, or set_attn_implementation. Under any other implementation DiffLlama's
    own code runs with the arguments it was called with. A second call does nothing.

    Raises:
        ImportError: transformers is missing, or of a version that this one was not tried with.
        RuntimeError: its DiffLlama is not that of the release: a fork, or patched by others.

    Examples:
        >>> import torch
        >>> from transformers import DiffLlamaConfig, DiffLlamaForCausalLM
        >>> register()
        >>> sizes = {"vocab_size": 99, "hidden_size": 64, "num_attention_heads": 4}
        >>> model = DiffLlamaForCausalLM(DiffLlamaConfig(num_hidden_layers=1, **sizes))
        >>> model.set_attn_implementation("diffattn")
        >>> model.generate(torch.tensor([[5, 7]]), max_new_tokens=3, do_sample=False).shape
        torch.Size([1, 5])
    """
    modeling = _diffllama()
    if hasattr(modeling.DiffLlamaAttention.forward, _MARK):
        return
    _require_proven(modeling)
    from transformers import AttentionInterface, AttentionMaskInterface

    from ._hf_attention import fused_forward
    from ._hf_mask import describe_mask

    own_forward = modeling.DiffLlamaAttention.forward

    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config._attn_implementation != NAME:
            return own_forward(self, *args, **kwargs)
        if "past_key_values" in kwargs:  # the cache's name in 5.23, which 5.24 takes too
            kwargs["cache"] = kwargs.pop("past_key_values")
        return fused_forward(self, *args, **kwargs)

    setattr(forward, _MARK, True)
    AttentionInterface.register(NAME, _refuse_other_models)
    AttentionMaskInterface.register(NAME, describe_mask)
    modeling.DiffLlamaAttention.forward = forward


def _diffllama() -> Any:
    """transformers' module of DiffLlama."""
    try:
        from transformers.models.diffllama import modeling_diffllama
    except ImportError as e:
        raise ImportError(f"diffattn_cuda.hf needs transformers with DiffLlama: {_REMEDY}") from e
    return modeling_diffllama


def _require_proven(modeling: Any) -> None:
    """An error unless the code that is about to be replaced is code that was tested against."""
    import transformers

    version = transformers.__version__
    wanted = PROVEN.get(".".join(version.split(".")[:2]))
    if wanted is None:
        raise ImportError(
            f"transformers is {version}; diffattn_cuda.hf is proven with {' and '.join(PROVEN)} "
            f"only, and in another version its tokens could be wrong: {_REMEDY}"
        )
    if _digest(modeling) != wanted:
        raise RuntimeError(
            f"the DiffLlama of this transformers {version} is not that of the release, so fused "
            f"attention could give wrong tokens: register() before other patches, or {_REMEDY}"
        )


def _digest(modeling: Any) -> str:
    """Of the source of what is replaced and of what calls it, decorators included."""
    layers = (modeling.DiffLlamaAttention, modeling.DiffLlamaDecoderLayer, modeling.DiffLlamaModel)
    functions = [modeling.DiffLlamaAttention.__init__, *(layer.forward for layer in layers)]
    try:
        source = "".join(map(inspect.getsource, functions))
    except OSError:
        return "no source"
    return hashlib.sha256(source.encode()).hexdigest()


def _refuse_other_models(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(f'attn_implementation="{NAME}" is for DiffLlama')
