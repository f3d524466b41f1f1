"""Anchors: causal pairs in ordinary recordings that bound an offset more tightly than run windows do."""
