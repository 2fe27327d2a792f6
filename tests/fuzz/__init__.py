"""Seeded fuzzers: damaged and hostile files are read, or refused by name."""
