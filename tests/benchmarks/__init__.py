"""Measurements, never assertions: each prints `figure, ours, reference, ratio, unit` as JSON.

Both sides of a ratio are measured in the same run.
"""
