"""Reading and writing so that nothing is half-written, lost, or run by a spreadsheet."""
