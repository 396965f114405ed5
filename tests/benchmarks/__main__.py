"""make bench, or make bench BENCH=name."""

import json
import sys

from tests.benchmarks.clustering import (
    fm_scoring,
    kmeans_assignment,
    kmeans_lloyd,
    kmeans_mini_batch,
)
from tests.benchmarks.overhead import lane_overhead
from tests.benchmarks.planning import plan_size, sharing
from tests.benchmarks.scoring import cheap_scores
from tests.benchmarks.speedup import pretraining_speedup

BENCHMARKS = {
    "sharing": sharing,
    "plan_size": plan_size,
    "pretraining_speedup": pretraining_speedup,
    "lane_overhead": lane_overhead,
    "fm_scoring": fm_scoring,
    "kmeans_assignment": kmeans_assignment,
    "kmeans_lloyd": kmeans_lloyd,
    "kmeans_mini_batch": kmeans_mini_batch,
    "cheap_scores": cheap_scores,
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
