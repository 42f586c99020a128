"""How the bundled model and its judge were made. Not part of an installation."""
