"""How fast: `python -m nanopref.bench --help`; what was measured is in README.md here.

    __main__.py  the command: which parts, how many rounds, which tables
    setting.py   what every contender is given: one model, one set of pairs, one way to be timed
    steps.py     a DPO step in the plain way, and what each idea adds
    memory.py    what a step takes above weights and gradients
    sampling.py  our sampler beside transformers' generate
    start.py     from the start of the process to the first finished step
    peers.py     TRL's DPOTrainer as a contender
    growth.py    how cost grows with lengths, batch, vocabulary, model and pairs
"""
