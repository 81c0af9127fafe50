"""Benchmarks of colbert_fast against its peers, and the report written from their results."""
