"""What a run is made of, from its command line to its folder. What users need to know is in README.md here.

    config.py       what one run is, fully resolved; the default learning rates
    reuse.py        where a run lives, and whether it is there already
    source.py       the code that a result stands on, so that an edit makes a new run
    cli.py          the two command lines, and how a command ends in one line where something is wrong
    dataset.py      which rows a run trains on and which it is tested on
    training.py     what both loops share: learning rate, optimiser, checkpoints, giving up
    reference.py    the reference's log-probs, computed once and kept
    checks.py       the step-0 check: a wrong reference, precision or gradient stops the run before it costs anything
    metrics.py      what one line of metrics.jsonl holds
    memory.py       memory of a step, estimated before and measured after
    disk.py         files that are whole or not there; one process on a run at a time
    checkpoint.py   model folders in Hugging Face's layout, and the state that --resume reads
    weights.py      tensors from files, looked at before they are loaded
    hf_config.py    config.json, to and from our Config
    distributed.py  what several processes do together under torchrun
"""
