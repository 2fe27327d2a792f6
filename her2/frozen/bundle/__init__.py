"""A frozen model as one folder or file that predicts without the results it came from."""
