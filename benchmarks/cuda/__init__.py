"""The benchmark on a CUDA device: ``make bench-gpu``, or ``python -m benchmarks.cuda``."""
