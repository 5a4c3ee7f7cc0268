"""Measures a model on labelled images at their own size, offline or through a running server, by
the same code.

metrics     pixel counts -> the figures
boundary    label maps -> pixel counts along the contours
measure     a data set and a model -> pixel counts, several images at once
offline     a model folder, through the code that serves it
served      a running server, over HTTP
calibration confidences that agree with how often the model is right
report      the figures as a document, JSON
page        the figures and the worst images, HTML
"""
