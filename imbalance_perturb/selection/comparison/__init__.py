"""Which method: all of them on the same images, and an advice."""
