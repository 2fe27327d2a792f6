"""Stage 1, encoder: train an encoder on labelled patches."""
