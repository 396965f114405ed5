"""Dataset pruning for transfer learning (Zhang et al. 2023, arXiv:2310.08782) as sweeps on Ray."""

__version__ = "0.1.0"
