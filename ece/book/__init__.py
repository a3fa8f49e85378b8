"""Draw the figures and tables of the chapters."""
