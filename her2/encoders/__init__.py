"""Stage 1, encoder: whatever the source, one folder of weights and a card."""
