"""The appliance as a container image: built, baked on the device, verified, run.

    make.py ─► build.py (docker build) ─► bakery.py (bakes in a container) ─► build.py ─► verify.py
                  context.py                                                     report.py

Imports the Docker SDK; nothing else in the project does.
"""
