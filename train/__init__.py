"""Standalone training, data and measuring scripts."""
