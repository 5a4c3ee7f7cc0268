"""Faster networks with the same results: conv-BN fusion, int8, CUDA. Each is checked against the
plain network.
"""
