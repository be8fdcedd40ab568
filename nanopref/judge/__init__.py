"""What tells whether something has got better: a policy, a reward model, a data set, a judge. See README.md here.

    stats.py          means, shares, and how uncertain they are
    policies.py       each measure of a policy, defined once
    reward_models.py  each measure of a reward model, from plain lists
    report.py         the end of a policy's run: table, answers side by side, figure, words
    report_rm.py      the same for a reward model
    plots.py          the figure of a policy's run
    plots_rm.py       the figure of a reward model
    readings.py       a run in words: what moved, whether that is normal, what to try
    judges.py         gold reward, reward model and language model behind one interface (a command)
    look.py           pictures of a preference data set before anybody trains on it (a command)
    compare.py        two policies in pictures, before two reward models (a command)
"""
