"""What tells whether something has got better: a policy, a reward model, a data set, a judge. See README.md here.

    stats.py          means, shares, and how uncertain they are
    measures.py       each measure of a policy, defined once: gold score, wins, KL to the start, pair accuracy
    measures_rm.py    each measure of a reward model, from plain lists: accuracy, calibration, length bias
    report.py         the end of a policy's run: table, answers side by side, figure, words
    report_rm.py      the same for a reward model
    plots.py          the figure of a policy's run
    plots_rm.py       the figure of a reward model
    in_words.py       a run in words: what moved, whether that is normal, what to try
    tables.py         how every table is printed
    judges.py         gold reward, reward model and language model behind one interface
    judging.py        all judges on the same pairs, and how far each can be trusted (a command)
    look.py           a preference data set in words and pictures before anybody trains on it (a command)
    data_set.py       its numbers: lengths, words of each side, hidden states
    plots_data.py     its figure
    compare.py        two policies before two reward models (a command)
    plots_compare.py  its figure
"""
