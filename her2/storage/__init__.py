"""What lies between the stages: the cache, tile tables, feature stores, entries."""
