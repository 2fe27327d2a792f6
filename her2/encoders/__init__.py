"""Stage 1, encoder: from any source, a folder with weights and a card."""
