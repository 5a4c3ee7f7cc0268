"""RGB pixels to the class of every pixel."""
