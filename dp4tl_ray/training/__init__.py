"""Mechanism that exists once: networks, the fit loop, the inference pass, checkpoints."""
