"""Latencies in HdrHistograms: recorded in each process, added up, and reported."""
