"""One reader per file layout: rows of numbers in, episodes out."""
