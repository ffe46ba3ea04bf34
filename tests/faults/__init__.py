"""Faults by the thousand: what the commands of `experiments` make of them.

`python -m tests.faults options|files|moments --cases 2000 --seed 0 --out results.json` draws odd
options, damages files, or cuts commands short, each case from its seed and number alone, and tells
which promises a case broke.
"""
