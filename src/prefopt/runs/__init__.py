"""A run from recipe to report: setting up, training, writing the folder. Methods are passed in as values."""
