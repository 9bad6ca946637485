"""What comes out of a run: the report, its figures, its words. Nothing here needs torch."""
