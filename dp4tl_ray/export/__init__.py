"""A kept subset, written for any other training code."""
