"""make bench, or make bench BENCH=name."""

import json
import sys

from tests.benchmarks.adversarial import adversarial_cost
from tests.benchmarks.augmentation import augmentation
from tests.benchmarks.bound import sweep_bound
from tests.benchmarks.clustering import (
    fm_scoring,
    kmeans_assignment,
    kmeans_lloyd,
    kmeans_mini_batch,
)
from tests.benchmarks.memory import lane_memory
from tests.benchmarks.objectives import ssl_cost
from tests.benchmarks.overhead import lane_overhead, lane_start
from tests.benchmarks.planning import plan_size, sharing
from tests.benchmarks.reading import reading
from tests.benchmarks.scale import scale
from tests.benchmarks.scoring import cheap_scores
from tests.benchmarks.search import lossless_search
from tests.benchmarks.speedup import pretraining_speedup
from tests.benchmarks.throughput import train_throughput
from tests.benchmarks.tracking import tracking_cost

BENCHMARKS = {
    "sharing": sharing,
    "plan_size": plan_size,
    "pretraining_speedup": pretraining_speedup,
    "lane_overhead": lane_overhead,
    "lane_start": lane_start,
    "lane_memory": lane_memory,
    "train_throughput": train_throughput,
    "sweep_bound": sweep_bound,
    "scale": scale,
    "fm_scoring": fm_scoring,
    "kmeans_assignment": kmeans_assignment,
    "kmeans_lloyd": kmeans_lloyd,
    "kmeans_mini_batch": kmeans_mini_batch,
    "cheap_scores": cheap_scores,
    "lossless_search": lossless_search,
    "augmentation": augmentation,
    "reading": reading,
    "ssl_cost": ssl_cost,
    "adversarial_cost": adversarial_cost,
    "tracking_cost": tracking_cost,
}


def main() -> int:
    """Run the named benchmarks, or all of them."""
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {unknown[0]!r}; allowed: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        for figure in BENCHMARKS[name]():
            print(json.dumps(figure), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
