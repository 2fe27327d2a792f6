"""Stage 2, explanation: pictures of a model's attention, and measures of its reliability."""
