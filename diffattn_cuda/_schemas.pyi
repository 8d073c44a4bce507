"""The types of `torch.ops.diffattn`: a type checker cannot read csrc/bindings/schemas.cpp.

Written by tools/schema_stub.py (make docs). Nothing can be imported from here at run time.
"""

from typing import Protocol

from torch import Tensor
from torch._ops import OpOverload

class Fwd(Protocol):
    default: OpOverload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lam: Tensor,
        norm_weight: Tensor | None,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        norm_eps: float | None,
        out_scale: float,
        deterministic: bool,
        training: bool,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

class Bwd(Protocol):
    default: OpOverload
    def __call__(
        self,
        dout: Tensor,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lam: Tensor,
        norm_weight: Tensor | None,
        o: Tensor,
        o2: Tensor,
        lse: Tensor,
        rstd: Tensor,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        norm_eps: float | None,
        out_scale: float,
        deterministic: bool,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

class Decode(Protocol):
    default: OpOverload
    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        lam: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        rotary_cos: Tensor | None,
        rotary_sin: Tensor | None,
        cache_seqlens: Tensor | None,
        cache_batch_idx: Tensor | None,
        cache_leftpad: Tensor | None,
        block_table: Tensor | None,
        norm_weight: Tensor | None,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        rotary_interleaved: bool,
        norm_eps: float | None,
        out_scale: float,
        num_splits: int,
        k_stream: Tensor | None = None,
        v_stream: Tensor | None = None,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor]: ...

class Components(Protocol):
    default: OpOverload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        deterministic: bool,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor]: ...

class BwdPartial(Protocol):
    default: OpOverload
    def __call__(
        self,
        dout: Tensor,
        dlse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lam: Tensor,
        lse: Tensor,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        deterministic: bool,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

class DecodeComponents(Protocol):
    default: OpOverload
    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        rotary_cos: Tensor | None,
        rotary_sin: Tensor | None,
        cache_seqlens: Tensor | None,
        cache_batch_idx: Tensor | None,
        cache_leftpad: Tensor | None,
        block_table: Tensor | None,
        softmax_scale: float,
        window_left: int,
        window_right: int,
        sink_size: int,
        streaming_heads: int,
        rotary_interleaved: bool,
        num_splits: int,
        k_stream: Tensor | None = None,
        v_stream: Tensor | None = None,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor]: ...

class Ops(Protocol):
    fwd: Fwd
    bwd: Bwd
    decode: Decode
    components: Components
    bwd_partial: BwdPartial
    decode_components: DecodeComponents
