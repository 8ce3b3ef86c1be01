"""Figures and tables of a paper, drawn from committed rows; see `experiments.figures.__main__`."""
