"""How many replicas a load asks for: measured curves, a queue, a simulation that checks both.

record of `make eval-latency` ─► curve ─► line (the queue in steady state) ─► size ─► capacity.py
                                  └─────► simulation ─► the same record's open loop
"""
