"""Builds, starts and stops everything that runs behind an enforcement point."""
