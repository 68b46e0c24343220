"""Summary of scores, figures, and the report."""
