"""The implementation of `segserve batch`: any number of images -> label maps and a table, on Ray
Data.

`sources` lists the images lazily. `job` defines a target's content and checks whether a job may
resume. `listing` divides the images into blocks. `worker` converts a block to label maps and one
part of the `table`. `cluster` starts or joins Ray. `run` processes the unfinished blocks with a
pool of workers. Only `storage` accesses files.

A block is finished when its part of the table exists. The part is written last and atomically. Its
name depends only on the block. So a job can be killed at any time, and a block that is processed
twice still has one part.
"""
