"""The HTTP contract as data: requests, responses, and the OpenAPI document that describes both.

`python -m segserve.schema` writes the documents in `docs/`. The contract's tests check live
responses against them.
"""
