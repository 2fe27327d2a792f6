"""Trained models as one fixed predictor: in a results folder, or moved out of it as a bundle."""
