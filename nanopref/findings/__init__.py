"""What was measured with this package, a file per question: `python -m nanopref.findings.NAME` trains what is missing
over several seeds, prints the table that stands in README.md here and saves its figure as {out}/findings/NAME.png.

    acceptance.py  every loss at its default setting over five seeds
    accuracy.py    how accurate a reward model is; batch size, epochs, the untrained head
    options.py     what each option of train_rm.py does to accuracy and length bias
    best_of_n.py   over-optimisation: the true reward of what a learned one picks
    overfit.py     training far too long
    pluralism.py   annotators who disagree
    two_by_two.py  does each judge favour its own policy?
    real_data.py   a reward model of real preferences
    seeds.py       the same run over several seeds
    common.py      what the findings share: test pairs, training over seeds, measures
    exercises.py   tells a reader of the notebooks whether an exercise is solved
"""
