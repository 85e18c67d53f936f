import sys

from tests.benchmarks.published.evaluate import main

sys.exit(main())
