"""A decoder-only language model of the Llama / Qwen2 family, with Hugging Face's parameter names.

RMSNorm, rotary positions, grouped-query attention, SwiGLU. Because names and layout are Hugging Face's, a folder of
theirs (config.json + model.safetensors) loads here without renaming, and ours loads there.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanopref.errors import UserError


@dataclass
class Config:
    """Field names and defaults are those of Hugging Face's config.json for Llama."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: as many as query heads
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "llama3", ...}: see rope_periods; None: plain
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # bias on q, k and v but not o: Qwen2
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    num_labels: int = 0  # 1 or more: in place of the language-model head `score`, which makes so many numbers

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings"):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) < 2 ** 31:
                raise UserError(f"config: {name} must be a positive integer below 2^31, not {getattr(self, name)!r}")
        for name in ("rope_theta", "rms_norm_eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 < getattr(self, name) < 1e30:
                raise UserError(f"config: {name} must be a positive number, not {getattr(self, name)!r}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(f"config: hidden_size {self.hidden_size} must be num_attention_heads "
                            f"({self.num_attention_heads}) times an even head size")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(f"config: num_attention_heads {self.num_attention_heads} must be a multiple of "
                            f"num_key_value_heads {self.num_key_value_heads}")
        if type(self.num_labels) is not int or self.num_labels < 0:
            raise UserError(f"config: num_labels must be an integer of at least 0, not {self.num_labels!r}")

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads


class KVCache:
    """Keys and values of the tokens so far: two buffers (B, Hkv, max_length, hd) per layer, filled up to `length`."""

    def __init__(self, max_length):
        self.max_length, self.length, self.buffers = max_length, 0, {}

    def append(self, layer, k, v):
        """Stores k, v (B, Hkv, T, hd) after the first `length`; returns all keys and values so far, (B, Hkv, S, hd)."""
        if layer not in self.buffers:
            shape = (k.shape[0], k.shape[1], self.max_length, k.shape[3])
            self.buffers[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        keys, values = self.buffers[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows):
        """Drops every row of the batch but `rows` (a mask or indices)."""
        self.buffers = {layer: (k[rows], v[rows]) for layer, (k, v) in self.buffers.items()}


def rope_periods(config, device, dtype):
    """theta^(2i/hd), (hd/2,): tokens per radian of the i-th coordinate pair (Su et al. 2021).

    rope_scaling "llama3" (Llama 3.1) makes a context longer than the trained one: pairs that turn less than
    low_freq_factor times in the original context turn `factor` times slower, those that turn more than high_freq_factor
    times stay as they are, and between the two it goes over linearly.
    """
    exponent = torch.arange(0, config.head_dim, 2, device=device).to(dtype) / config.head_dim
    periods = config.rope_theta ** exponent
    if config.rope_scaling is None:
        return periods
    scaling = config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi * periods)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # share of the pair's own speed
    return periods / (kept + (1 - kept) / scaling["factor"])


def rope_tables(position_ids, config, dtype):
    """Cosines and sines (B, 1, T, hd/2) of the angles position / period."""
    angles = position_ids[:, None, :, None].to(dtype) / rope_periods(config, position_ids.device, dtype)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns coordinate pair (i, i + hd/2) of x (B, H, T, hd) by its angle: Hugging Face's half-split convention."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(q, k, v, attn_mask, is_causal, is_expanded):
    """Attention of q (B, H, T, hd) over k and v (B, Hkv, S, hd), each shared by H / Hkv query heads: (B, H, T, hd).

    is_expanded copies k and v for every query head. The result is the same; on CUDA only then does PyTorch have a
    kernel that takes a mask without holding all B x H x T x S weights, and on mps some releases crash otherwise. (On
    CUDA not for single tokens: the whole cache would be copied for each.)
    """
    if is_expanded:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: several query heads share one key-value head."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, attn_mask, cache):
        """x (B, T, d) -> (B, T, d); cos and sin (B, 1, T, hd/2), attn_mask and cache as in Transformer.forward."""
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, hd), (B, Hkv, T, hd) twice
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, Hkv, S, hd)
        is_expanded = q.device.type == "mps" or q.is_cuda and T > 1
        y = attend(q, k, v, attn_mask, is_causal=attn_mask is None and T > 1, is_expanded=is_expanded)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then MLP, each on the normalised input and added to it."""

    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, attn_mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attn_mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """The model. With config.num_labels it has `score` and no language-model head, as Hugging Face's classifiers (see
    reward.RewardModel); otherwise `lm_head`, unless config.tie_word_embeddings makes the embedding serve as one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # keep only each block's input for backward, and compute the block again
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers)),
            "norm": nn.RMSNorm(config.hidden_size, config.rms_norm_eps)})
        if not config.tie_word_embeddings and not config.num_labels:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.num_labels:
            self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:  # GPT-2: what adds to the residual stream starts smaller, by its 2 * layers terms
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_hidden_layers) if is_output else 0.02)

    def forward(self, input_ids, position_ids=None, attn_mask=None, cache=None):
        """Hidden states after the final norm, (B, T, d); give them to `logits` or `score` where those are needed.

        input_ids     (B, T) token ids
        position_ids  (B, T) or None: counted from the start of the row, or on from what the cache holds
        attn_mask     (B, 1, T, S) bool, True = may attend, S counts the cache too; every query needs one True.
                      None: causal
        cache         a KVCache, extended in place by these T tokens
        """
        T, seen = input_ids.shape[1], cache.length if cache is not None else 0
        if position_ids is None:
            position_ids = torch.arange(seen, seen + T, device=input_ids.device)[None]  # (1, T)
        if attn_mask is None and seen and T > 1:  # SDPA's own causal mask is only right with nothing before
            attn_mask = torch.ones(T, seen + T, dtype=torch.bool, device=input_ids.device).tril(seen)
        x = self.model["embed_tokens"](input_ids)  # (B, T, d)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # bf16 is too coarse for angles
        cos, sin = rope_tables(position_ids, self.config, dtype)
        for block in self.model["layers"]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, attn_mask, cache, use_reentrant=False)
            else:
                x = block(x, cos, sin, attn_mask, cache)
        if cache is not None:
            cache.length += T
        return self.model["norm"](x)

    def head(self):
        """The matrix (V, d) that makes logits of hidden states."""
        return self.model["embed_tokens"].weight if self.config.tie_word_embeddings else self.lm_head.weight

    def logits(self, hidden):
        """(..., d) -> (..., V)."""
        return F.linear(hidden, self.head())
