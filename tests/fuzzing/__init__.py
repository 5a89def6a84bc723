"""Hostile requests and files, drawn by chance from a seed, and what may be answered to them."""
