"""Contrastive losses with mixed hard negatives, and the ascent of noise negatives."""
