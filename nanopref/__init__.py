"""nanopref: preference alignment from scratch, small enough to read in an afternoon.

Read these, in this order; everything else may wait until you need it.

    model.py    the transformer: Llama and Qwen2, with Hugging Face's parameter names
    text.py     text to token ids and back; chat turns by the model's own template
    batch.py    a prompt and its responses in one packed layout: ids, positions, mask
    logps.py    from logits to log-probs: the shift by one, the gather, the sum over a response
    losses.py   every preference loss, its gradient under it, the registry at the bottom
    reward.py   the Bradley-Terry reward model: its loss and options, and where a response gets its reward
    sample.py   sampling with a key-value cache

Then train_po.py and train_rm.py beside this folder, each from top to bottom. What else is here:

    rl.py       what PPO adds to the policy gradient: advantages, the clipped surrogate, KL estimates (for notebooks)
    errors.py   UserError: an error you can fix
    sandbox.py  where a model's chat template runs, a program of somebody else's
    data/       your files: formats, rows, token ids, models and data by name
    world/      the embedded world whose true reward is known, and one so small that every expectation is a sum
    run/        what a run is made of: command line, configuration, checkpoints, checks, memory, several processes
    judge/      what tells whether a run has got better: measures, reports, figures, judges
    findings/   what was measured with all this, a file per question
    bench/      how fast it is

Docstrings name the texts that all this follows: the course report (on reward models and DPO), the slides (RLHF, RLAIF,
DPO, ORPO), the blog post (DPO), the guide (to human-preference alignment) and arXiv:2407.15229 (*PO in practice);
notebooks/README.md, which has the equations of each, numbers them 000 to 004.

Imports go one way: errors -> model, sandbox, text, losses -> batch, sample -> logps -> reward, rl -> world ->
data -> run -> judge -> the two scripts -> findings, bench.
"""
import signal
import sys
from pathlib import Path

# A command of this project imports torch for seconds: Ctrl-C then ends it without a traceback, until run/cli.py answers
# to it. In a program of somebody else's, a notebook or a test nothing is changed.
if Path("".join(sys.argv[:1])).name in ("train_po.py", "train_rm.py") or any(
        flag == "-m" and name.split(".")[0] == "nanopref" for flag, name in zip(sys.orig_argv, sys.orig_argv[1:])):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
