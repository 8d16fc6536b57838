"""Slow, independent versions of what the package computes, written from the definitions."""
