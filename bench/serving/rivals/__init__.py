"""Whoever is measured: each starts in a context, gives one or several contestants, and stops with it."""
