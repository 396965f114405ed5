"""python -m dp4tl_ray."""

import sys

from dp4tl_ray.cli import main

sys.exit(main())
