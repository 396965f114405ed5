"""Weights & Biases: a mirror of a study, which may fail without the study noticing.

The driver alone knows of it, and only through a process of its own, the mirror: whatever the client
does there (block, leak, print, change its environment, die) is out of the way of the study. What it
is told is in `messages`; the results themselves are in results.jsonl.
"""
