"""What the stages exchange: the cache, tile tables, feature stores, entries."""
