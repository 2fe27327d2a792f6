"""`her2 view`: what people mark on slides, kept as GeoJSON beside the results."""
