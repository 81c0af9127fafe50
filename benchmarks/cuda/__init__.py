"""The benchmark on a CUDA device: ``make bench-gpu``, or ``python -m benchmarks.cuda``.

``__main__`` is the command: it runs the tests that need a device, then ``worker`` in a process of its own, and writes
the JSON file from the journal that the worker leaves, whatever becomes of the worker.
"""
