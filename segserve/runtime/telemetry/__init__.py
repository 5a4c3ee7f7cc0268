"""Timings, metrics and traces of requests."""
