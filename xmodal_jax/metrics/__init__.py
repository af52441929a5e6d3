"""Metrics of trained models, computed on whole data sets of embeddings, samples or texts."""
