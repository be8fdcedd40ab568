"""The embedded world: preference data whose truth is known. It is described in data/README.md.

    language.py  every sentence it can say, what is true in it, what is asked: begin here
    gold.py      the gold reward: reads the same forms backwards, so it scores any string
    writers.py   five writers of uneven quality, the demonstrations of SFT, the base model's corpus
    labels.py    preferences drawn from the gold reward: pairs, rankings, annotators' groups, the files of a run
    exact.py     another world, of 31 responses, where every expectation is a sum: optimum, losses, policy gradient
"""
