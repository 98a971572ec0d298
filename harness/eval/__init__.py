"""Evaluators: what is measured of a model beside its NLL, during training."""
