"""The served model beside the bare network and beside what people use today: `python -m bench`.

registry       whoever is measured, by name; `rivals/` has a module for each
contestant     the one interface of them all
workload       the images, and the order in which everybody gets them
over_http      what is asked over HTTP; `load` is the process that sends the requests
loop           what is measured without a server, in a process of its own
session        one run: started, warmed up, measured, stopped whatever happens; `rounds` says who is asked when
figures        medians, 99th percentiles, ratios
report, plot   what is made of them; `machine` is what they were measured on
"""
