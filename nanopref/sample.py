"""Sampling responses: left-padded batches, a key-value cache, temperature and top-p."""
import torch
from tqdm import tqdm

from nanopref.errors import UserError
from nanopref.model import KVCache

CACHED_TOKENS = 2 ** 16  # of one batch: 3 GB of keys and values in float32 for SmolLM2-135M, 1.6 GB for Qwen2.5-0.5B


def choose(logits, temperature, top_p, generator):
    """One token per row of logits (B, V), from the smallest set of likeliest tokens that holds top_p of the mass.

    Holtzman et al. 2020, eq. 2-3; temperature divides the logits first, and 0 means the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs, tokens = (logits.float() / temperature).softmax(-1).sort(dim=-1, descending=True)
    cdf = probs.cumsum(-1)
    is_kept = cdf - probs < top_p  # the mass before a token; 0 for the likeliest, which therefore always stays
    kept_mass = cdf.where(is_kept, 0).amax(-1, keepdim=True)
    # Inverse CDF: one random number per row, where torch.multinomial draws one per token of the vocabulary.
    u = torch.rand(len(probs), 1, generator=generator, device=probs.device) * kept_mass
    return tokens.gather(1, torch.searchsorted(cdf, u))[:, 0]


@torch.inference_mode()
def generate(model, prompts, *, eos_id, pad_id, max_new_tokens=256, temperature=0.7, top_p=0.95, seed=0,
             batch_size=256, progress=False):
    """One response per prompt, in the order of the prompts: lists of token ids, EOS included where it was reached.

    A response ends at EOS, after max_new_tokens, or where prompt and response fill the model's context.
    The same arguments on the same machine give the same responses. UserError for a prompt that is empty or leaves no
    room in the context, and for a temperature or top_p out of range.
    """
    context, device = model.config.max_position_embeddings, model.model["norm"].weight.device
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(f"need temperature >= 0 and 0 < top_p <= 1, not {temperature} and {top_p}")
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise UserError(f"prompt {i} has {len(prompt)} tokens, the model takes 1 to {context - 1}")
    generator = torch.Generator(device).manual_seed(seed)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours need little padding
    responses, groups = [[] for _ in prompts], []
    for i in by_length:
        longest = len(prompts[i]) + max_new_tokens
        if not groups or len(groups[-1]) == batch_size or (len(groups[-1]) + 1) * longest > CACHED_TOKENS:
            groups.append([])
        groups[-1].append(i)
    for rows in tqdm(groups, "sampling", disable=not progress):
        lengths = torch.tensor([len(prompts[i]) for i in rows], device=device)  # (B,) of prompt and response so far
        T = len(prompts[rows[-1]])
        room = min(max_new_tokens, context - len(prompts[rows[0]]))
        input_ids = torch.tensor([[pad_id] * (T - len(prompts[i])) + prompts[i] for i in rows], device=device)  # (B, T)
        position_ids = torch.arange(T, device=device) - (T - lengths)[:, None]  # (B, T), negative at padding
        is_real = position_ids >= 0
        causal = torch.ones(T, T, dtype=torch.bool, device=device).tril()
        itself = torch.eye(T, dtype=torch.bool, device=device)  # gives padding something to attend to: no 0/0 there
        attn_mask = (is_real[:, None, :] & causal | itself)[:, None]  # (B, 1, T, T)
        cache, done = KVCache(T + room), torch.zeros(len(rows), dtype=torch.bool, device=device)
        for _ in range(room):
            hidden = model(input_ids, position_ids, attn_mask, cache)
            tokens = choose(model.logits(hidden[:, -1]), temperature, top_p, generator)  # (B,)
            for i, token, is_done in zip(rows, tokens.tolist(), done.tolist()):
                if not is_done:
                    responses[i].append(token)
            lengths = lengths + 1
            done = done | (tokens == eos_id) | (lengths >= context)
            if done.all():
                break
            if 2 * done.sum() >= len(rows):  # dropping rows copies the cache, so not at every EOS
                keep = ~done
                rows = [i for i, is_kept in zip(rows, keep.tolist()) if is_kept]
                tokens, lengths, is_real, done = tokens[keep], lengths[keep], is_real[keep], done[keep]
                cache.keep(keep)
            input_ids, position_ids = tokens[:, None], lengths[:, None] - 1
            is_real = torch.cat([is_real, torch.ones_like(is_real[:, :1])], 1)
            attn_mask = is_real[:, None, None, :]  # (B, 1, 1, S)
    return responses
