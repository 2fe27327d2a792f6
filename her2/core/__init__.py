"""Code that every stage shares: errors, files, tables, array types, masks, hardware."""
