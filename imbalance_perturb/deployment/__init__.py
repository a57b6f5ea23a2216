"""The corrected model as one file that needs no autograd."""
