"""Measures a model on labelled images at their original size.

metrics     label maps -> pixel counts -> metrics
measure     a data set and a model, in this process or behind a server -> metrics
calibration the temperature of a model's confidences
report      the metrics as a JSON document
page        the metrics and the worst images as an HTML file
"""
