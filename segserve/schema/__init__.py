"""The HTTP contract as data: the only definition of a class row, of a segmentation response and of
an error response.

The archive carries this package too. Only `openapi`, which the archive does not carry, needs the
rest of segserve. `python -m segserve.schema` writes the documents in `docs/`. The contract's tests
check live responses against them.
"""
