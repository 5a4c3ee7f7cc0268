"""Label map to JSON, PNG, RLE, polygons, overlay and NumPy."""
