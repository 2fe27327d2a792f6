"""Stage 1, embed: run tiles through a frozen encoder into feature stores."""
