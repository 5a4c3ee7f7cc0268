"""Image bytes to upright uint8 RGB pixels, within limits."""
