"""The reference's log-probs: computed once, kept in a file, and found again."""
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from nanopref.logps import score
from nanopref.run.checkpoint import digest
from nanopref.run.disk import write
from nanopref.run.distributed import from_main, is_main, shared
from nanopref.run.source import code_of


def cached_logps(start: Path, reference, examples, cache: Path, autocast, precision: str, fresh) -> list:
    """The examples with `ref_logps` filled in (nats, summed). The key of the cache is the reference's folder, the token
    ids (so data, template and length limits), the precision and the code that computes: another of any is another file.

    `reference` is the policy before its first step: a second model is never in memory while training."""
    code = code_of("nanopref.logps.score", "nanopref.run.checkpoint.load_model")
    ids = [[e.prompt, e.responses] for e in examples]
    key = hashlib.sha256(json.dumps([digest(start), precision, ids, code]).encode())
    path = cache / f"reference-{key.hexdigest()[:16]}.safetensors"
    flat = None
    if from_main(path.exists) and not fresh:  # one answer for all
        try:
            flat = load_file(path)["ref_logps"].tolist()
            print(f"reference log-probs: reusing {path}")
        except SafetensorError:
            print(f"reference log-probs: {path} is damaged, computing them again")
    if flat is None:
        with autocast:
            progress = lambda parts: tqdm(parts, desc="reference log-probs", disable=not is_main())
            logps = shared(lambda own: score(reference, own, progress=progress), examples)
        flat = [x for each in logps for x in each]
        if is_main():
            write(path, lambda partial: save_file({"ref_logps": torch.tensor(flat)}, partial))
    values = iter(flat)
    return [replace(e, ref_logps=[next(values) for _ in e.responses]) for e in examples]
