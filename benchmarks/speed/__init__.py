"""Time and memory of S-TLLR beside those of backpropagation through time: ``python -m benchmarks.speed``."""
