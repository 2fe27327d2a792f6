"""A slide on disk: its files, its identity, its um/px, its px, and what people drew on it."""
