"""The mathematics: tensors in, tensors out; no I/O, no specs, no global randomness."""
