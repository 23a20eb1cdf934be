"""The embedded corpus: a small made world of coloured shapes in the official file formats of all benchmarks."""
