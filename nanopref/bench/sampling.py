"""Our sampler beside transformers' `generate`: the same weights, prompts and response lengths."""
import math
from functools import partial

import torch

from nanopref.bench.setting import EOS, PAD, interleaved, model_of, pairs_of, ratio, spread
from nanopref.sample import generate

PROMPTS, SAMPLES, NEW_TOKENS = 64, 8, 128
SETTINGS = dict(temperature=0.7, top_p=0.95)


def script(stops):
    """A function of logits (B, V) that makes row i of a batch of len(stops) say EOS as its token number stops[i], (N,)
    rising, and not before: random weights stop nowhere by themselves. One call per token, for all rows of the batch or,
    as the first rows are the first to end, for the last B that are left of it."""
    step = 0

    def force(logits):
        nonlocal step
        step += 1
        is_end = stops[len(stops) - len(logits):, None] <= step  # (B, 1)
        is_eos = torch.arange(logits.shape[1], device=logits.device) == EOS  # (V,)
        return logits.masked_fill(is_end != is_eos, -math.inf)  # of an ending row all but EOS, else EOS
    return force


def ours(model, prompts, stops, samples=None, **settings) -> list:
    """Responses of nanopref.sample.generate, ended by `script`."""
    force = script(stops)
    model.logits = lambda hidden: force(type(model).logits(model, hidden))
    said = generate(model, prompts, eos_id=EOS, pad_id=PAD, max_new_tokens=int(stops[-1]), samples=samples, **settings)
    del model.logits  # the class's own again
    return said if samples is None else sum(said, [])


@torch.inference_mode()
def theirs(model, prompts, stops, samples=1, temperature=0, **settings) -> list:
    """Responses of transformers' generate on one left-padded batch, ended by the same `script`."""
    force, T = script(stops), max(map(len, prompts))
    device = next(model.parameters()).device
    input_ids = torch.tensor([[PAD] * (T - len(prompt)) + prompt for prompt in prompts], device=device)
    if temperature:
        settings |= dict(do_sample=True, temperature=temperature, top_k=0)
    rows = model.generate(input_ids, attention_mask=(input_ids != PAD).long(), eos_token_id=EOS, pad_token_id=PAD,
                          max_new_tokens=int(stops[-1]), num_return_sequences=samples,
                          logits_processor=[lambda ids, scores: force(scores)], **{"do_sample": False, **settings})
    said = [row[T:].tolist() for row in rows]
    return [ids[:ids.index(EOS) + 1] for ids in said]  # behind EOS it pads


def contenders(size: str, peers: bool, device) -> tuple[dict, dict]:
    """({what: (prompts, stops (N,), settings of `generate`)}, {"ours": (function, model), "theirs": the same of
    transformers, with `peers`}).

    The head is scaled so that logits spread as a trained model's do: by 4, some 3 nats of entropy; top-p of the nearly
    equal probabilities that random weights give is another problem. Prompts are sorted, as our sampler does it by
    itself, so that row i is the same one on both sides. Stops: constant, or log-normal as pairs_of draws responses."""
    model = model_of(size, device).eval()
    with torch.no_grad():
        model.head().mul_(4 / (0.02 * math.sqrt(model.config.hidden_size)))
    pairs = pairs_of(size, PROMPTS)
    prompts = sorted((e.prompt for e in pairs), key=len)
    fixed = torch.full((PROMPTS,), NEW_TOKENS, device=device)
    drawn = torch.tensor(sorted(len(e.responses[0]) for e in pairs), device=device)
    few, several = prompts[::SAMPLES], dict(samples=SAMPLES, **SETTINGS)
    tasks = {"greedy, fixed length": (prompts, fixed, dict(temperature=0)),
             "fixed length": (prompts, fixed, SETTINGS), "realistic lengths": (prompts, drawn, SETTINGS),
             f"{SAMPLES} samples a prompt, fixed length": (few, fixed, several),
             f"{SAMPLES} samples a prompt, realistic lengths": (few, drawn, several)}
    sides = {"ours": (ours, model)}
    if peers:
        from nanopref.bench.peers import transformers_model
        sides["theirs"] = theirs, transformers_model(model).eval()
    return tasks, sides


def measure(size: str, rounds: int, peers: bool, device) -> list[dict]:
    """A row per task: tokens of responses a second, EOS included, of both, how many times faster ours is, and whether
    greedy responses are the same, which they must be. In float32; what is drawn on CUDA, in bf16."""
    tasks, sides = contenders(size, peers, device)
    rows = []
    for what, (prompts, stops, settings) in tasks.items():
        said = {}

        def respond(name):
            function, model = sides[name]
            said[name] = function(model, prompts, stops, **settings)

        seconds = interleaved({name: partial(respond, name) for name in sides}, rounds)
        for name, responses in said.items():
            assert [len(ids) for ids in responses] == stops.tolist(), f"{name}: other lengths than scripted"
        row = {"what": what}
        for name, times in seconds.items():
            row[f"{name} tokens/s"] = spread([int(stops.sum()) / t for t in times], 0)
        if "theirs" in sides:
            is_greedy = settings["temperature"] == 0
            row |= {"ratio": ratio(seconds["theirs"], seconds["ours"]),
                    "same output": ("yes" if said["ours"] == said["theirs"] else "NO") if is_greedy else "-"}
        rows.append(row)
        if torch.device(device).type == "cuda":  # after greedy decoding, where the two round differently
            for _, model in sides.values():
                model.bfloat16()
    return rows
