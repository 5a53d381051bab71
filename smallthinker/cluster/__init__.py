"""An engine a node, on a Ray cluster: joining one, what a node loads, and replicas that answer for a server.

Scheduling, shipping, health and recovery are Ray's.
"""
