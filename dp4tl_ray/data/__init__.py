"""Datasets on disk -> batches of tensors."""
