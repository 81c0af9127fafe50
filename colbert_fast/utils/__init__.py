"""What neural-cherche's `utils` has for ColBERT: batches, data, and evaluation."""
