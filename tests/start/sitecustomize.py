"""Start of each Python process of the tests: rarer garbage collections, which take a third of the time of imports."""

import gc

gc.set_threshold(100_000, 50, 50)
