"""A slide on disk: its files, its identity, its um/px, its pixels and its annotations."""
