"""MEDS in, sequences of feature values out."""
