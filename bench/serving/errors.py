class BenchError(Exception):
    """A benchmark or one of its systems cannot continue. The message is one line of text for
    people.
    """
