"""Resurge's workers: models, data sets, training, sampling and scoring. torch lives here."""
