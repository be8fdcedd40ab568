"""Sampling responses: left-padded batches, a key-value cache, temperature and top-p."""
import torch
from tqdm import tqdm

from nanopref.errors import UserError
from nanopref.model import KVCache

LIKELIEST = 64  # tokens that usually hold top_p of the mass: finding them takes a tenth of sorting the vocabulary
CACHED_TOKENS = 2 ** 16  # of one batch: 3 GB of keys and values in float32 for SmolLM2-135M, 1.6 GB for Qwen2.5-0.5B


def choose(logits, temperature, top_p, generator):
    """One token per row of logits (B, V), from the smallest set of likeliest tokens that holds top_p of the mass.

    Holtzman et al. 2020, eq. 2-3; temperature divides the logits first, and 0 means the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / temperature).softmax(-1)
    # Inverse CDF: one random number per row, where torch.multinomial draws one per token of the vocabulary.
    u = torch.rand(len(probs), 1, generator=generator, device=probs.device)
    if top_p == 1 or probs.shape[-1] <= LIKELIEST:
        return _from_set(*probs.sort(descending=True), top_p, u)
    likeliest, tokens = probs.topk(LIKELIEST)
    drawn = _from_set(likeliest, tokens, top_p, u)
    is_flat = likeliest[:, :-1].sum(-1) < top_p  # without the last: if that one is in the set, others behind it may be
    if is_flat.any():
        drawn[is_flat] = _from_set(*probs[is_flat].sort(descending=True), top_p, u[is_flat])
    return drawn


def _from_set(probs, tokens, top_p, u):
    """(B,) one of the tokens (B, K) per row, of falling probs, among the first that hold top_p; u (B, 1) uniform."""
    cdf = probs.cumsum(-1)
    is_kept = cdf - probs < top_p  # the mass before a token; 0 for the likeliest, which therefore always stays
    kept_mass = cdf.where(is_kept, 0).amax(-1, keepdim=True)
    return tokens.gather(1, torch.searchsorted(cdf, u * kept_mass))[:, 0]


@torch.inference_mode()
def generate(model, prompts, *, eos_id, pad_id, max_new_tokens=256, temperature=0.7, top_p=0.95, seed=0,
             samples=None, batch_size=256, progress=False):
    """One response per prompt, in the order of the prompts: lists of token ids, EOS included where it was reached.

    A response ends at EOS, after max_new_tokens, or where prompt and response fill the model's context.
    With `samples`, a list of that many responses per prompt; each prompt is computed once for all of them.
    The same arguments on the same machine give the same responses. UserError for a prompt that is empty or leaves no
    room in the context, for a temperature or top_p out of range, and for samples below 1.
    """
    context, device = model.config.max_position_embeddings, model.model["norm"].weight.device
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(f"need temperature >= 0 and 0 < top_p <= 1, not {temperature} and {top_p}")
    if samples is not None and samples < 1:
        raise UserError(f"need samples >= 1, not {samples}")
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise UserError(f"prompt {i} has {len(prompt)} tokens, the model takes 1 to {context - 1}")
    generator = torch.Generator(device).manual_seed(seed)
    n = samples or 1
    responses = [[] for _ in range(n * len(prompts))]  # response r answers prompt r // n
    for rows in tqdm(_groups(prompts, n, max_new_tokens, batch_size), "sampling", disable=not progress):
        asked, copies = torch.tensor([r // n for r in rows]).unique_consecutive(return_inverse=True)  # (P,), (B,)
        asked = [prompts[i] for i in asked.tolist()]
        room = min(max_new_tokens, context - len(asked[0]))
        hidden, lengths, is_real, cache = _prefill(model, asked, room, pad_id)
        if len(asked) < len(rows):
            copies = copies.to(device)
            hidden, lengths, is_real = hidden[copies], lengths[copies], is_real[copies]  # (B, ...)
            cache.keep(copies)
        running = set(rows)
        for _ in range(room):
            tokens = choose(model.logits(hidden), temperature, top_p, generator)  # (B,)
            for r, token in zip(rows, tokens.tolist()):
                if r in running:
                    responses[r].append(token)
                    if token == eos_id or len(responses[r]) == min(max_new_tokens, context - len(prompts[r // n])):
                        running.remove(r)
            if not running:
                break
            if 2 * len(running) <= len(rows):  # dropping rows copies the cache, so not at every EOS
                kept = torch.tensor([k for k, r in enumerate(rows) if r in running], device=device)
                rows = [r for r in rows if r in running]
                tokens, lengths, is_real = tokens[kept], lengths[kept], is_real[kept]
                cache.keep(kept)
            attn_mask = is_real[:, None, None, :cache.length + 1]  # (B, 1, 1, S)
            hidden = model(tokens[:, None], lengths[:, None], attn_mask, cache)[:, -1]  # (B, d)
            lengths = lengths + 1
    return responses if samples is None else [responses[i:i + n] for i in range(0, len(responses), n)]


def _groups(prompts, n, max_new_tokens, batch_size):
    """Batches of the numbers of n responses to each prompt, short prompts first: neighbours need little padding."""
    groups = []
    for r in sorted(range(n * len(prompts)), key=lambda r: len(prompts[r // n])):
        longest = len(prompts[r // n]) + max_new_tokens
        if not groups or len(groups[-1]) == batch_size or (len(groups[-1]) + 1) * longest > CACHED_TOKENS:
            groups.append([])
        groups[-1].append(r)
    return groups


def _prefill(model, prompts, room, pad_id):
    """The prompts, the longest one last, left-padded through the model: (hidden states of their last tokens (P, d),
    lengths (P,), which places are no padding (P, T + room), the cache, with room for that many more tokens)."""
    device = model.model["norm"].weight.device
    lengths, T = torch.tensor([len(prompt) for prompt in prompts], device=device), len(prompts[-1])
    input_ids = torch.tensor([[pad_id] * (T - len(prompt)) + prompt for prompt in prompts], device=device)  # (P, T)
    position_ids = torch.arange(T, device=device) - (T - lengths)[:, None]  # (P, T), negative at padding
    is_real = torch.arange(T + room, device=device) >= (T - lengths)[:, None]  # (P, T + room)
    causal = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    itself = torch.eye(T, dtype=torch.bool, device=device)  # gives padding something to attend to: no 0/0 there
    attn_mask = (is_real[:, None, :T] & causal | itself)[:, None]  # (P, 1, T, T)
    cache = KVCache(T + room)
    return model(input_ids, position_ids, attn_mask, cache)[:, -1], lengths, is_real, cache
