"""Probes and rules by which the stage `gate` decides whether a new policy replaces the old one."""
