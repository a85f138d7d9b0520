"""A run's figures for monitoring: a Prometheus endpoint, and OpenTelemetry metrics over OTLP.

`figures` defines every metric once; `prometheus` and `otlp` put them into their formats.
"""
