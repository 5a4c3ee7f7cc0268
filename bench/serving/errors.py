class BenchError(Exception):
    """A benchmark, or one of its rivals, that cannot go on. The message is one line for people."""
