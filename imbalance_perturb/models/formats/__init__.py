"""One module for each format of model file: recognised, checked, read."""
