"""From tensors to a network: which architecture they are of, and how it is built."""
