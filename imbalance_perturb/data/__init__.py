"""Image files and their labels, and what the model receives of them."""
