"""Paired comparison, intervals, power and Kaplan–Meier: numbers in, numbers out."""
