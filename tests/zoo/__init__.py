"""Every type of model in transformers' causal-LM mapping, built small, trained in every way, and held to a reference.

    python -m tests.zoo                 all types, about 15 minutes; writes benchmarks/results/zoo.md and zoo.json
    python -m tests.zoo llama gpt_oss   these alone; their rows are put into the table
    python -m tests.zoo --rest          the types that zoo.json does not have yet
    python -m pytest tests/zoo          a cross-section, in the test command

A type comes from transformers' own mapping, so one that is new tomorrow is in the zoo without a change here, or fails
in it by name.

- `shrink.py`: a small configuration and model of any type, by the kinds of its fields.
- `reference.py`: plain transformers in float64, one unpadded sample at a time; nothing of the package.
- `cells.py`: one type in every way that the package trains it: padded, packed, in a ring, with LoRA, exported, …
- `table.py`: the results for people and as data, with a justification for each kind of refusal.
"""
