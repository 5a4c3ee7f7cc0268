"""Faster networks with the same results, each checked against the plain network."""
