"""The bundled world: pictures of coloured shapes, a tiny diffusion model of them, and a judge."""
