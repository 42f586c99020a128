"""Prompts, noise, latents, UNet: the mathematics of diffusion as plain functions."""
