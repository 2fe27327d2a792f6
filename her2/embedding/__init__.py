"""Stage 1, embed: tiles through a frozen encoder into feature stores."""
