"""Image files decoded in processes of their own, each image with a time limit."""
