"""Seeded fuzzers: whatever is in a file, it is read, or refused by name, within bounds."""
