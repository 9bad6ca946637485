"""One HTML file for a run or a sweep: it loads nothing from elsewhere, and reads without its script."""
