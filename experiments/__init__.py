"""Questions with measured answers: each file is Config + run(config), run by `python -m`."""
