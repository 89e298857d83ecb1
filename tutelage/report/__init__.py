"""The report of a finished recipe: plain data in, one self-contained HTML page out."""
