"""The HTTP contract as data: what requests hold, what answers hold, and the OpenAPI document that tells both.

`python -m segserve.contract` writes what lies in `docs/`; the contract's tests hold live answers against it.
"""
