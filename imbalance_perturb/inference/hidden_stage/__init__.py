"""A network cut in two behind one of its layers, so that the step can be taken there."""
