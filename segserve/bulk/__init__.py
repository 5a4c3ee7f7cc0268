"""Segments many images: `segserve segment` and `segserve batch`.

`sources` lists the images in a `storage`, `results` assigns, claims and encodes their results.
`run` computes with a server or in this process. `batch` computes with `worker`s on Ray Data; it
writes label maps and a `table` to a folder or a bucket.
"""
