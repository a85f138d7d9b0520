"""`poolkit drill`: failures on demand under load, and the time until the targets work again.

One fault after the other is made while Locust sends requests to every target. The figures are what
a client sees: failed requests, the seconds until the service is back, acknowledged writes that are
lost or doubled, and connections that never came back to their pool.

In order of reading: `traffic` (the requests), `load_users` (Locust's users that send them), `network`
(the proxy before the database), `faults`, `bare` (the application to compare with), `run`, `figures`
and `report`. `command` is the whole way, from options to exit status.
"""
