"""An AWS account on this machine, to rehearse deployments in.

`moto_gaps` makes moto's server answer as AWS documents it. Tests and `poolkit rehearse` use the same
server, so what a rehearsal shows is what the tests hold.
"""
