"""`make bench`: what sive promises about speed, memory and start, measured; see docs/benchmarks.md."""
