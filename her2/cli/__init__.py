"""The `her2` command."""
