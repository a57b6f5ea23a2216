"""Reports for people: figures drawn once, shown in an image file or in one self-contained HTML page."""
